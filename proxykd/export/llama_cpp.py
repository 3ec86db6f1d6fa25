"""llama.cpp with one GGUF file: what it reads in it, asked through its own server (the PyPI package xllamacpp)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proxykd.errors import ModelError

CONTEXT = 2048
SILENT = -1


class LlamaCpp:
    """A running server. What it is asked has token ids, never text that it would cut itself."""

    def __init__(self, server: Any, url: str):
        self._server, self._url = server, url
        self._harmless = self.tokens("a")[0]

    def tokens(self, text: str) -> list[int]:
        """As its own tokenizer cuts a text, in which control tokens are themselves."""
        asked = {"content": text, "add_special": False, "parse_special": True}
        return list(self._post("/tokenize", asked)["tokens"])

    def prompt(self, messages: Sequence[dict[str, str]]) -> str:
        """As its own reading of the file's template renders a conversation."""
        return str(self._post("/apply-template", {"messages": list(messages)})["prompt"])

    def next_logprobs(self, ids: Sequence[int], k: int) -> dict[int, float]:
        """The k likeliest next tokens with their log-probs, of the full softmax.

        The server tells none beside a token that ends nothing whole, as a byte of a character: it is made to draw
        another, which changes no log-prob.
        """
        asked = {"prompt": list(ids), "max_tokens": 1, "logprobs": k, "temperature": 0.0, "cache_prompt": True}
        asked |= {"logit_bias": [[self._harmless, 1e4]]}
        found: dict[str, Any] = self._server.handle_completions(asked)
        if "error" in found:
            raise ModelError(f"llama.cpp refuses a completion: {found['error']}")
        [content] = found["choices"][0]["logprobs"]["content"]
        return {one["id"]: one["logprob"] for one in content["top_logprobs"]}

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import httpx

        answer: dict[str, Any] = httpx.post(f"{self._url}{path}", json=body, timeout=60).raise_for_status().json()
        return answer


@contextmanager
def llama_cpp(path: Path) -> Iterator[LlamaCpp]:
    """Raises:
    ModelError: the package is not there, or it cannot load the file.
    """
    try:
        import xllamacpp
    except ImportError:
        raise ModelError("GGUF files are held against llama.cpp: pip install 'proxykd[gguf]'") from None
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.port = CONTEXT, 1, 0
    params.warmup, params.verbosity = False, SILENT
    try:
        server = xllamacpp.Server(params)
    except Exception as error:
        raise ModelError(f"llama.cpp does not load {path.name}: {error}") from error
    url = server.listening_address
    yield LlamaCpp(server, url if url.startswith("http") else f"http://{url}")
