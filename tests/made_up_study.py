"""A study's report from made-up numbers: what its page, its figures and its tables are tested on."""

from __future__ import annotations

import math
import random

from proxykd.evaluation.benchmarks import TaskScore
from proxykd.evaluation.measures import Fidelity, MassShares, TrustStatistics
from proxykd.report.blocks import TrustReport
from proxykd.report.provenance import Hardware
from proxykd.report.report_model import StageCost
from proxykd.stages.trained import CurvePoint
from proxykd.study.saving import savings
from proxykd.study.sizes import size_table
from proxykd.study.studies import validate_study
from proxykd.study.study_model import ArmKl, ArmReport, Calibration, StudyFacts, StudyReport
from proxykd.study.study_report import benchmark_table, costs, table
from tests.stage_results import labels

WITH_PROXY = ("proxy_kd", "without_trust")
NAMES = (*WITH_PROXY, "black_box_kd", "jsd")
RECORDS = 800
SIZES = {"records": [200, 400], "arms": ["black_box_kd", "proxy_kd"]}
RUN = {"corpus": {"path": "c"}, "proxy": {"source": "p"}, "student": {"source": "s"}}
RUN |= {"white_box": {"teacher": {"source": "o"}, "max_new_tokens": 12}}


def fidelity(nll):
    agreement = {"top1_agreement": 1 / (1 + nll), "sequence_agreement": 0.125}
    return Fidelity(held_out_nll=nll, stderr=0.01, records=9, prompts=9, tokens=99, **agreement)


def scores(chance, *models):
    """Two tasks each."""
    return {
        model: {task: TaskScore(score=chance.random(), stderr=0.1, n=9, unanswered=0.0) for task in ("bbh", "mmlu")}
        for model in models
    }


def arm(chance, name, seed, proxy, sealed, benchmarks):
    """One arm and seed, with a proxy and an open seal where it is told so."""
    asked = ("student@10", "student@20", "student", *(["proxy"] if proxy else [])) if benchmarks else ()
    statistics = labels("r01").model_dump(include=set(TrustStatistics.model_fields))
    weights, kls = ([chance.random() for _ in range(9)] for _ in range(2))
    cost = {"records": 9, "tokens": 99, "devices": 1, "seconds": 360.0, "busy_seconds": 360.0, "device_hours": 0.1}
    return ArmReport(
        name=name,
        seed=seed,
        size=None,
        records=RECORDS,
        run=f"{name}-s{seed}",
        proxy=fidelity(1.5) if proxy else None,
        source=fidelity(1.5) if proxy else None,
        student=fidelity(2 + chance.random()),
        student_before=fidelity(4),
        validation=fidelity(2.4),
        curve=[CurvePoint(**dict(fidelity(4 - i / 2)), step=10 * i) for i in range(4)],
        sealed_teacher=ArmKl(student=chance.random(), source=0.4 if proxy else None) if sealed else None,
        trust=TrustReport(**statistics, spearman_vs_true_kl=-0.5) if proxy else None,
        calibration=Calibration(weight=weights, kl=kls) if proxy and sealed else None,
        alignment=[fidelity(3), fidelity(2), fidelity(1.5)] if proxy else [],
        mass=MassShares(k=[1, 2, 3], share=[0.1, 0.5, 0.9]) if proxy else None,
        parameters={"proxy": 2_000_000, "student": 500_000},
        rounds=[],
        benchmarks=scores(chance, *asked),
        device_hours=0.5,
        own_device_hours=0.1,
        stages=[StageCost(stage="warmup", round=None, **cost)],
    )


def smaller(full, size):
    """The same run with fewer records: the student is worse by 0.1 nats for each halving, and 0.2 of a small proxy."""
    lost = 0.1 * math.log2(full.records / size) * (2 if full.name == "proxy_kd" else 1)
    kl = full.sealed_teacher and full.sealed_teacher.model_copy(update={"student": full.sealed_teacher.student + lost})
    student = fidelity(full.student.held_out_nll + lost)
    facts = {"size": size, "records": size, "run": f"{full.run}-n{size}", "student": student, "sealed_teacher": kl}
    return full.model_copy(update=facts)


def made_up(sealed=True, proxies=WITH_PROXY, seeds=(1, 2), benchmarks=True, sizes=None, reference="proxy_kd"):
    chance = random.Random(0)
    raw = {"name": "study", "seeds": list(seeds), "arms": list(NAMES), "run": RUN, "sizes": sizes}
    study = validate_study(raw | {"reference": reference}, "test")
    arms = [arm(chance, name, seed, name in proxies, sealed, benchmarks) for name in NAMES for seed in seeds]
    sized = [one for one in arms if sizes and one.name in sizes["arms"]]
    arms += [smaller(one, size) for one in sized for size in sizes["records"]]
    hardware = Hardware(cpu="a processor", cores=2, memory_gib=8.0, gpus=[])
    return StudyReport(
        study=StudyFacts(
            id="study-12345678",
            name="a <study>",
            seeds=list(seeds),
            reference=study.reference,
            git_revision=None,
            hardware=hardware,
        ),
        arms=arms,
        table=table(study, arms),
        sizes=size_table(study, arms),
        savings=savings(study, arms),
        benchmarks=benchmark_table(study, arms),
        costs=costs([one for one in arms if one.size is None]),
    )
