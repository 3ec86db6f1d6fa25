"""Certificates where the truth is known: students of the study of sums against its teacher, by exact scores.

    python configs/miniature/answers.py && proxykd study configs/study-answers.yaml
    python -m benchmarks.certify_sums STUDY [--questions 1500] [--certificates 2000] [--write FILE]

Each model answers questions that its run has not seen, greedily. Of all of them the net (right answers of the student
less the teacher's) is the truth, of the whole and of slices by how many digits are carried; a certificate sees a few
that are drawn of them. A verdict is wrong where it says of any slice what is not so. By two margins: 0.05, and the
truth itself, by which no student is ready.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from proxykd.certification.verdicts import LEVEL, OUTCOMES, holm, p_not_ready, p_ready, weights_of
from proxykd.evaluation.answers import Question
from proxykd.evaluation.harness import Answerer, generating
from proxykd.evaluation.task import prompts_of
from proxykd.models.run_models import local_model
from proxykd.runs.run_directory import RunDirectory
from proxykd.study.studies import StudyDirectory
from proxykd.text.corpus import prompt_key

sys.path.insert(0, str(Path(__file__).parents[1] / "configs" / "miniature"))
from answers import draw_any

ARMS = ("whole-text-s1", "sft-on-all-s1", "proxy-kd-s1")
SIZES = (60, 120, 250, 500, 1000)
MARGIN = 0.05
ROUNDING = 1e-9
Net = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--questions", type=int, default=1500)
    parser.add_argument("--certificates", type=int, default=2000)
    parser.add_argument("--write", metavar="FILE", help="The questions with the teacher's answers, and no table.")
    wanted = parser.parse_args()
    console = Console(highlight=False)
    runs = {name: run for run in StudyDirectory(wanted.study).runs() if (name := run.id.rpartition("-")[0]) in ARMS}
    questions, carries = unseen_questions(list(runs.values()), wanted.questions)
    told = greedy_answers(str(local_model(next(iter(runs.values())).models / "teacher")), questions)
    if wanted.write:
        lines = [
            {"prompt": one.prompt, "completion": text, "sum": one.answer, "carried": int(count)}
            for one, text, count in zip(questions, told, carries, strict=True)
        ]
        Path(wanted.write).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    teacher = right_ones(told, questions)
    table = Table("student", "truth", "margin", "prompts", "ready", "not ready", "not enough", "wrong, any slice")
    for name in ARMS:
        net = right_ones(greedy_answers(str(runs[name].student), questions), questions) - teacher
        truth = [float(net.mean()), *(float(net[carries == k].mean()) for k in range(3))]
        for margin in (MARGIN, -truth[0]):
            for size in SIZES if margin > 0 else ():
                row = _certified(net, carries, truth, margin, size, wanted.certificates)
                true = f"{truth[0]:+.3f} ({', '.join(f'{one:+.3f}' for one in truth[1:])})"
                table.add_row(name, true, f"{margin:.3f}", str(size), *(f"{share:.1%}" for share in row))
    console.print(table)
    console.print(
        f"the teacher is right in {teacher.mean():.3f} of {len(questions)}; in brackets by digits carried: 0, 1, 2"
    )


def unseen_questions(runs: list[RunDirectory], count: int) -> tuple[list[Question], NDArray[np.int64]]:
    """Questions that no run's corpus has, and how many digits each carries."""
    seen = {key for run in runs for key, _ in prompts_of(run, run.config().corpus.slices)}
    chance, found = random.Random("certificates"), {}
    while len(found) < count:
        one = draw_any(chance)
        asked = one.asked(len(found))
        key = prompt_key(({"role": "user", "content": asked.prompt},))
        if key not in seen:
            ones = one.a % 10 + one.b % 10 > 9
            found.setdefault(key, (asked, int(ones) + int(one.a // 10 + one.b // 10 + ones > 9)))
    return [one for one, _ in found.values()], np.array([carried for _, carried in found.values()])


def greedy_answers(model: str, questions: list[Question]) -> list[str]:
    with generating(Answerer(model, "transformers", "float32", "cpu", 256)) as generate:
        said = generate([({"role": "user", "content": one.prompt},) for one in questions], [64] * len(questions))
    return [answer.text for answer in said]


def right_ones(answers: list[str], questions: list[Question]) -> Net:
    return np.array([one.right(one.extract(text)) for one, text in zip(questions, answers, strict=True)], float)


def _certified(
    net: Net, carries: NDArray[np.int64], truth: list[float], margin: float, size: int, certificates: int
) -> tuple[float, ...]:
    """The shares of certificates by their verdict on the whole, and of those that are wrong of any slice."""
    chance = np.random.default_rng(size)
    drawn = chance.integers(len(net), size=(certificates, size))
    inside = np.stack([np.ones_like(drawn, bool), *(carries[drawn] == k for k in range(3))], axis=1)
    counts = np.stack([((net[drawn] == one)[:, None] & inside).sum(-1) for one in OUTCOMES], axis=-1).astype(float)
    weights = weights_of(counts.shape[1])
    ready, not_ready = (
        np.array([holm(one, weights) <= LEVEL for one in test(counts, margin)]) for test in (p_ready, p_not_ready)
    )
    worse = np.array(truth) < -margin + ROUNDING
    wrong = ((ready & worse) | (not_ready & (np.array(truth) > -margin - ROUNDING))).any(1)
    shares = [ready[:, 0], not_ready[:, 0], ~ready[:, 0] & ~not_ready[:, 0], wrong]
    return tuple(float(one.mean()) for one in shares)


if __name__ == "__main__":
    main()
