"""What of an on-policy phase is planned, previewed, asked and told: memory, hours, rooms, subjects, tables."""

from __future__ import annotations

import pytest

from proxykd.config import validate_config
from proxykd.costs.demands import ProcessDemands
from proxykd.costs.devices import GPUS
from proxykd.costs.estimator import Estimator, Text
from proxykd.costs.memory_plan import GIB, disk_gib, footprints, kv_bytes
from proxykd.errors import BenchmarkError
from proxykd.evaluation.harness import Answerer
from proxykd.models.architecture import require_architecture
from proxykd.planning.describe import describe
from proxykd.planning.packings import Tokens, packings
from proxykd.planning.record_lengths import Lengths, Measured, sample_rooms
from proxykd.planning.time_plan import estimate
from proxykd.report.run_report import build_report
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.distil import DISTIL
from proxykd.stages.on_policy import ON_POLICY, OnPolicyResult
from services.cli.report_tables import fidelity_table
from services.cli.subjects import of_run
from tests.small_run import run_config
from tests.stage_results import distilled, finish, learned
from tests.told_run import tell_run

PROXY = {"source": "meta-llama/Llama-2-13b-hf"}
STUDENT = {"source": "meta-llama/Llama-2-7b-hf", "method": "lora"}
TEXT = Text(10_000, 100.0, 200.0)


def config(phase, **sections):
    raw = {"name": "t", "corpus": {"path": "c"}, "proxy": PROXY, "student": STUDENT, "on_policy": phase}
    return validate_config(raw | sections, "test")


def student_footprint(phase, **sections):
    return next(f for f in footprints(config(phase, **sections)) if f.what == "trainer, student on-policy")


def test_the_judge_lies_beside_the_student_and_samples_need_a_cache():
    proxy, student = (require_architecture(config({}).models[name]) for name in ("proxy", "student"))
    judged, preferred = student_footprint({}), student_footprint({"judge": "preference"})
    assert judged.parts["frozen"] > 2 * proxy.parameters / GIB  # its adapter too
    assert preferred.parts["frozen"] == pytest.approx(2 * student.parameters / GIB)
    assert preferred.parts["training"] == pytest.approx(judged.parts["training"] * 4 / 3)  # two terms
    few, many = (student_footprint({"global_batch": batch}).parts for batch in (32, 4096))
    cache = 4096 * 1024 * kv_bytes(student, "bfloat16") / GIB
    assert many["working"] == pytest.approx(cache - many["activations"])
    assert few["working"] < many["working"]
    with_phase, without = disk_gib(config({})), disk_gib(config(None))
    assert with_phase - without == pytest.approx(
        (2 * student.parameters + 4 * student.lora_parameters(16)) / GIB, rel=1e-6
    )


def test_its_hours_are_samples_judging_and_training():
    """On one GPU: a step of a batch reads the weights once and the cache of half-grown rows as if whole."""
    planned, device = config({"epochs": 2}, resources={"device": "gpu"}), GPUS["a100-80g"]
    by = Estimator(planned, TEXT, device)
    student = by.student.parameters
    records = 2 * by.distillation
    read = 2 * student + 32 * 300 * kv_bytes(by.student, "bfloat16")
    drawing = records / 32 * 200 * read / (device.bandwidth * device.bandwidth_share)
    assert by.drawing(planned.student, planned.on_policy, by.distillation) == pytest.approx(drawing)
    flops = 2 * by.proxy.parameters * records * 300 + 4 * student * records * 300
    flops += 5 * 2 * student * by.validation * 300
    [found] = [one for one in estimate(planned, TEXT, device) if one.stage == "on_policy"]
    expected = drawing + flops / (device.peak * device.training_share) + device.worker_start_s
    assert found.seconds == pytest.approx(expected)
    assert found.records == round(records)
    assert not [one for one in estimate(config(None), TEXT, device) if one.stage == "on_policy"]


def test_an_engine_that_judges_lies_elsewhere_and_stays_up():
    judged, told = student_footprint({}), student_footprint({"source": "engine"})
    assert "frozen" in judged.parts
    assert "frozen" not in told.parts
    assert {**judged.parts, "frozen": 0} == {**told.parts, "frozen": 0}
    on_gpus = {"resources": {"device": "gpu", "engine_replicas": 2, "engine_tensor_parallel": 2}}
    beside, with_engine = (
        ON_POLICY.demands(ProcessDemands(config(phase, **on_gpus))) for phase in ({}, {"source": "engine"})
    )
    assert [sum(demand.gpus for demand in step) for step in (*beside, *with_engine)] == [1, 1 + 4]
    device = GPUS["a100-80g"]
    trainer, engine = (
        Estimator(config(phase, resources={"device": "gpu"}), TEXT, device) for phase in ({}, {"source": "engine"})
    )
    forward = 2 * trainer.proxy.parameters * trainer.distillation * 300 / device.peak
    more = ON_POLICY.cost(engine)[0].seconds - ON_POLICY.cost(trainer)[0].seconds
    expected = device.engine_start_s + forward / device.forward_share - forward / device.training_share
    assert more == pytest.approx(expected)


def test_its_batches_and_rooms_are_previewed():
    lengths = [Tokens(10, 20 + i) for i in range(40)]
    slices = dict.fromkeys(("warmup", "alignment", "distillation"), lengths)
    of = {judge: packings(config({"judge": judge}), slices, slices)[-1] for judge in ("proxy", "preference")}
    assert [(one.stage, one.records, one.steps) for one in of.values()] == [("on-policy", 40, 2)] * 2
    assert of["preference"].micro_batches > of["proxy"].micro_batches
    measured = [Measured(None, "distillation", 10, 20, 20, None)] * 3
    kept = dict.fromkeys(("alignment", "distillation"), measured)
    rooms = {room.slice: room for room in sample_rooms(config({"max_new_tokens": 15}), kept, kept)}
    assert rooms.keys() == {"alignment", "distillation"}
    assert rooms["distillation"].room == Lengths.of("room of a sample", [15] * 3)
    assert rooms["distillation"].cut_as_own == 1.0


def test_a_students_stages_are_told_in_its_own_tokens():
    ours = dict.fromkeys(("warmup", "alignment", "distillation"), [Tokens(10, 20)] * 40)
    theirs = dict.fromkeys(ours, [Tokens(12, 60)] * 40)
    alike = {one.stage: one.micro_batches for one in packings(config({}), ours, ours)}
    found = {one.stage: one.micro_batches for one in packings(config({}), ours, theirs)}
    longer = {one.stage: one.micro_batches for one in packings(config({}), theirs, theirs)}
    for stage, mine in found.items():
        assert mine == (alike if stage == "warm-up" or stage.endswith("rounds") else longer)[stage]
    assert longer["distillation"] > alike["distillation"]
    kept = {name: [Measured(None, name, each.prompt, each.completion, each.completion, None) for each in ours[name]]
            for name in ("alignment", "distillation")}  # fmt: skip
    other = {name: [Measured(None, name, 90, 5, 5, None)] for name in kept}
    rooms = {room.slice: room.room for room in sample_rooms(config({"max_new_tokens": 1000}), kept, other)}
    assert rooms["alignment"].at[0] - rooms["distillation"].at[0] == 90 - 10


@pytest.mark.parametrize(
    ("phase", "told"),
    [
        ({}, "on-policy     reverse_kl from the aligned proxy on its own samples, Adam 1e-05, batch 32, 1 epoch(s)"),
        ({"source": "engine"}, "reverse_kl from the aligned proxy's 20 likeliest on its own samples, Adam 1e-05"),
        ({"judge": "preference"}, "NLL (token_mean) + DPO (beta 0.1) against its own samples from before, Adam 1e-05"),
    ],
)
def test_a_config_with_it_is_described(phase, told):
    assert any(told in line for line in describe(config(phase)))


def test_the_student_that_is_asked_is_the_phases(tmp_path):
    run, plain = RunDirectory.create(run_config("m", str(tmp_path), on_policy={})), Answerer(model="unused")
    finish(run, DISTIL, distilled())
    with pytest.raises(BenchmarkError, match="has no student yet"):
        of_run(run, plain, None)
    finish(run, ON_POLICY, OnPolicyResult(drift=None, sampled_tokens=9, **learned(3.0)))
    [student] = of_run(run, plain, None)
    assert student.answerer.model == str(run.on_policy_student)


def test_the_table_and_the_report_have_both_students(tmp_path):
    run = tell_run(tmp_path, on_policy={})
    report = build_report(run, "")
    assert report.student.on_policy.drift == "samples have 9.0 tokens"
    [models] = [column._cells for column in fidelity_table(report).columns[:1]]
    assert models[-3:] == ["student, before", "student, offline", "student, after"]
