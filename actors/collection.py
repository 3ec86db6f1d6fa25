"""Asking the teacher: completions over an OpenAI-compatible API, several at once, kept as they arrive."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxykd.config import TeacherConfig
from proxykd.corpus import Record
from proxykd.errors import TeacherError
from proxykd.rounds import sample_seed
from proxykd.storage import write_atomic

PART_RECORDS = 32


def collected_lines(directory: Path) -> list[dict[str, Any]]:
    """All completions kept so far, in the order of arrival."""
    return [
        json.loads(line) for part in sorted(directory.glob("part-*.jsonl")) for line in part.read_text().splitlines()
    ]


def collect(
    prompts: list[Record],
    teacher: TeacherConfig,
    base_url: str,
    directory: Path,
    seed: int,
    progress: Callable[[float, float, str], None],
) -> None:
    """Asks for every prompt that has no completion yet. What was paid for is on disk within 32 completions.

    Raises:
        TeacherError: unreachable or refusing after all retries. What had arrived is kept.
    """
    asyncio.run(_collect(prompts, teacher, base_url, directory, seed, progress))


async def _collect(
    prompts: list[Record],
    teacher: TeacherConfig,
    base_url: str,
    directory: Path,
    seed: int,
    progress: Callable[[float, float, str], None],
) -> None:
    import openai

    kept = collected_lines(directory)
    done_ids = {line["id"] for line in kept}
    missing = [prompt for prompt in prompts if prompt.id not in done_ids]
    client = openai.AsyncOpenAI(
        base_url=base_url,
        api_key=os.environ.get(teacher.api_key_env, "none"),
        max_retries=teacher.max_retries,
        timeout=teacher.timeout_s,
    )
    slots = asyncio.Semaphore(teacher.concurrency)
    buffer: list[dict[str, Any]] = []
    parts = len(list(directory.glob("part-*.jsonl")))

    def flush() -> None:
        nonlocal parts
        if buffer:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in buffer)
            write_atomic(directory / f"part-{parts:05d}.jsonl", text.encode())
            parts += 1
            buffer.clear()

    async def ask(prompt: Record) -> dict[str, Any]:
        async with slots:
            answer = await client.chat.completions.create(
                model=teacher.model,
                messages=list(prompt.messages),  # type: ignore[arg-type]
                max_tokens=teacher.max_tokens,
                temperature=teacher.temperature,
                seed=sample_seed(seed, 0, prompt.id),
            )
        choice = answer.choices[0]
        return {
            "id": prompt.id,
            "messages": [*prompt.messages, {"role": "assistant", "content": choice.message.content or ""}],
            "finish_reason": choice.finish_reason,
            "model": answer.model,
            "usage": answer.usage.model_dump(exclude_none=True) if answer.usage else None,
        }

    tasks = [asyncio.create_task(ask(prompt)) for prompt in missing]
    try:
        progress(len(kept), len(prompts), "completions")
        for finished, task in enumerate(asyncio.as_completed(tasks), start=1):
            buffer.append(await task)
            if len(buffer) >= PART_RECORDS:
                flush()
            progress(len(kept) + finished, len(prompts), "completions")
    except openai.APIStatusError as error:
        raise TeacherError(
            f"the teacher at {base_url} refused after {teacher.max_retries} retries: HTTP {error.status_code} "
            f"{error.message}; check teacher.model and the key in ${teacher.api_key_env}"
        ) from error
    except openai.APIConnectionError as error:
        raise TeacherError(
            f"the teacher at {base_url} cannot be reached after {teacher.max_retries} retries ({error}); "
            f"check teacher.base_url, then resume: {len(kept) + len(buffer)} completions are kept"
        ) from error
    finally:
        for pending in tasks:
            pending.cancel()
        flush()
        await client.close()
