"""What the student's doubt is worth where the truth is known: prompts sent on to the teacher, in the study of sums.

    python configs/miniature/answers.py && proxykd study configs/study-answers.yaml
    python -m benchmarks.cascade_sums STUDY [--questions 4000]

Each student answers questions that its run has not seen, greedily. Half of them are for certificates, by which a doubt
is fitted; the other half is the traffic, on which its thresholds then decide who answers. By the student's log-probs of
its answers, as `proxykd serve-student` has them, and by the proxy's of the same answers too, as with `--with-proxy`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.certify_sums import ARMS, Net, greedy_answers, right_ones, unseen_questions
from proxykd.certification.answer_scores import AnswerScorer
from proxykd.certification.doubt import Observation, doubt_of, features, fitted
from proxykd.certification.outcomes import Outcome
from proxykd.evaluation.answers import Question
from proxykd.evaluation.harness import Answerer
from proxykd.models.run_models import local_model
from proxykd.runs.run_directory import RunDirectory
from proxykd.study.studies import StudyDirectory
from services.cli.subjects import PROXY, STUDENT, of_certificate

SIZES = (250, 500, 1000, 2000)
SHARES = (0.05, 0.1, 0.2)
PLAIN = Answerer("", "transformers", "float32", "cpu", 256)
Logps = list[tuple[float, ...]]
Models = tuple[str, ...]
DOUBTS: tuple[Models, ...] = ((STUDENT,), (STUDENT, PROXY))
"""Whose log-probs a doubt reads: as `proxykd serve-student` has it, and `--with-proxy`."""


@dataclass(frozen=True)
class Answered:
    """By one student: the net of each answer against the teacher's, and the log-probs that each model gives it."""

    net_N: Net
    logps: dict[str, Logps]

    def part(self, start: int, stop: int) -> Answered:
        return Answered(self.net_N[start:stop], {name: logps[start:stop] for name, logps in self.logps.items()})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--questions", type=int, default=4000)
    wanted = parser.parse_args()
    console = Console(highlight=False, width=140)
    runs = {name: run for run in StudyDirectory(wanted.study).runs() if (name := run.id.rpartition("-")[0]) in ARMS}
    questions, _ = unseen_questions(list(runs.values()), wanted.questions)
    teacher = right_ones(
        greedy_answers(str(local_model(next(iter(runs.values())).models / "teacher")), questions), questions
    )
    half = wanted.questions // 2
    cascade = Table(
        "student", "certificate", "doubt by", *(f"{share:.0%} sent on" for share in SHARES), "",
        title="net of the traffic",
    )  # fmt: skip
    ranking = Table("student", "certificate", "by the student's", "by the proxy's", "by both", title="ranking")
    for name in [arm for arm in ARMS if arm in runs]:
        found = answered(runs[name], questions, teacher)
        traffic = found.part(half, wanted.questions)
        for size in [size for size in SIZES if size <= half]:
            certificate = found.part(0, size)
            for models in [each for each in DOUBTS if found.logps.keys() >= set(each)]:
                cascade.add_row(name, str(size), " and ".join(models), *cascaded(certificate, traffic, models))
            ranking.add_row(name, str(size), *(f"{one:.3f}" for one in ranked(certificate, traffic)))
    console.print(f"the teacher is right in {teacher.mean():.4f} of {len(questions)}; {half} questions are the traffic")
    console.print(cascade)
    console.print("by doubt (share that was sent on; at random; at best); what the certificate said")
    console.print(ranking)


def answered(run: RunDirectory, questions: list[Question], teacher: Net) -> Answered:
    subjects = {one.name: one for one in of_certificate(run, PLAIN, "float32")}
    said = greedy_answers(str(run.student), questions)
    asked = [({"role": "user", "content": one.prompt},) for one in questions]
    logps = {}
    for name in (STUDENT, PROXY):
        if name not in subjects:  # SFT has learned from none
            continue
        with subjects[name].ready() as answerer:
            logps[name] = AnswerScorer(answerer).score(asked, [text.strip() for text in said])
    return Answered(right_ones(said, questions) - teacher, logps)


def observed(answered: Answered, models: Models) -> list[Observation]:
    logps_N = zip(*(answered.logps[name] for name in models), strict=True)
    pairs = zip(answered.net_N.tolist(), logps_N, strict=True)
    return [Observation(f"{i:05d}", logps, Outcome(net, net), float(net < 0)) for i, (net, logps) in enumerate(pairs)]


def cascaded(certificate: Answered, traffic: Answered, models: Models) -> list[str]:
    """The traffic's net where the doubt of the certificate decides, beside what would be at random and at best, and
    what the certificate says; last, the traffic's net without a fall-back."""
    report, doubt = doubt_of(observed(certificate, models), "", [], None)
    net, total = traffic.net_N, len(traffic.net_N)
    if doubt is None:
        return [f"no doubt: {report.lost} lost"] * len(SHARES) + [f"{net.mean():+.4f}"]
    doubts_N = np.array([doubt.of(*logps) for logps in zip(*(traffic.logps[name] for name in models), strict=True)])
    told = {point.share: point.answers.net for point in report.curve}
    cells = []
    for share in SHARES:
        sent_N = doubts_N >= doubt.threshold(share)
        random, best = net.mean() * (1 - sent_N.mean()), np.sort(net)[sent_N.sum() :].sum() / total
        by_doubt = net[~sent_N].sum() / total
        cells.append(f"{by_doubt:+.4f} ({sent_N.mean():.1%}; {random:+.4f}; {best:+.4f}); {told[share]:+.4f}")
    return [*cells, f"{net.mean():+.4f}"]


def ranked(certificate: Answered, traffic: Answered) -> list[float]:
    """How often a lost answer of the traffic has a higher doubt than another, by whose log-probs it is told."""
    lost_N, found = traffic.net_N < 0, []
    for names in ((STUDENT,), (PROXY,), (STUDENT, PROXY)):
        if not set(names) <= traffic.logps.keys():
            continue
        model = fitted(_features(certificate, names), (certificate.net_N < 0).astype(float))
        doubts_N = model.of(_features(traffic, names))
        above = doubts_N[lost_N][:, None] - doubts_N[~lost_N][None]
        found.append(float(((above > 0) + (above == 0) / 2).mean()))
    return found


def _features(answered: Answered, names: tuple[str, ...]) -> Net:
    return np.hstack([[features(logps) for logps in answered.logps[name]] for name in names])


if __name__ == "__main__":
    main()
