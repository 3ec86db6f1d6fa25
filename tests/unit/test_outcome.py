"""What a run came to in one sentence, and the words beside a correlation and around prompts, from numbers made by hand."""

from __future__ import annotations

import pytest

from proxykd.evaluation.inspection import shared_frame
from proxykd.evaluation.measures import Difference
from proxykd.report.outcome import outcome
from proxykd.report.overview import calibration
from proxykd.stages.evaluate import STUDENT_AFTER, STUDENT_BEFORE, STUDENT_SFT
from tests.stage_results import evaluated, scores

KL = "The student's true KL from the teacher"
NLL = "The NLL that the student gives the teacher's held-out text"


def judged(before: float, after: float, **less):
    """A run whose student had these true KLs, its errors 0.01, beside SFT at 0.5 where `less` is given."""
    models = {STUDENT_BEFORE: scores(5.0, before), STUDENT_AFTER: scores(4.0, after), STUDENT_SFT: scores(4.2, 0.5)}
    difference = Difference(**{"nll": -0.2, "nll_stderr": 0.02, "prompts": 40, **less}) if less else None
    return outcome(evaluated(models, student_less_sft=difference))


def test_without_sft_it_says_how_far_the_student_came():
    came = judged(1.449, 0.9)
    assert came.sentence == f"{KL} fell from 1.449 ± 0.010 to 0.900 ± 0.010 nats a token."
    assert came.short == "true KL 1.449 → 0.900 ± 0.010"
    assert (came.sft, came.less_sft, came.measure) == (None, None, "true_kl")


@pytest.mark.parametrize(
    ("kl", "stderr", "verdict"),
    [
        (-0.0087, 0.0031, "−0.0087 ± 0.0031 compared record by record, so this student is closer"),
        (0.0087, 0.0031, "+0.0087 ± 0.0031 compared record by record, so this student is farther"),
        (-0.0087, 0.0044, "−0.0087 ± 0.0044 compared record by record, no difference beyond its error"),
        (-0.0087, None, "−0.0087 compared record by record, of unknown error"),
    ],
    ids=["closer", "farther", "undecided: t(39) is 2.02", "one prompt"],
)
def test_beside_sft_it_says_whether_the_difference_is_one(kl, stderr, verdict):
    came = judged(1.4, 0.49, true_kl=kl, true_kl_stderr=stderr)
    assert came.sentence.endswith(f" nats a token. SFT on the same text gives 0.500 ± 0.010: {verdict}.")
    assert came.short == f"true KL 1.400 → 0.490 ± 0.010; {verdict.split(' compared')[0]} to SFT"
    assert came.less_sft.value == kl


def test_a_black_box_is_judged_by_the_nll():
    models = {STUDENT_BEFORE: scores(4.0), STUDENT_AFTER: scores(4.25), STUDENT_SFT: scores(4.2)}
    less = Difference(nll=0.05, nll_stderr=0.01, true_kl=None, true_kl_stderr=None, prompts=40)
    came = outcome(evaluated(models, student_less_sft=less))
    assert came.sentence == (
        f"{NLL} rose from 4.000 ± 0.100 to 4.250 ± 0.100 nats a token. SFT on the same text gives 4.200 ± 0.100: "
        "+0.0500 ± 0.0100 compared record by record, so this student is farther."
    )
    same = outcome(evaluated({STUDENT_BEFORE: scores(4.0), STUDENT_AFTER: scores(4.0)}))
    assert same.sentence == f"{NLL} stayed at 4.000 ± 0.100 nats a token."


@pytest.mark.parametrize(
    ("rank", "records", "told"),
    [
        (0.06, 48, "+0.06 over 48 records, as chance alone gives (up to ±0.29): none is seen"),
        (-0.4, 48, "−0.40 over 48 records: where more is trusted the proxy is closer to the teacher"),
        (0.4, 48, "+0.40 over 48 records: where more is trusted the proxy is farther from the teacher"),
        (-0.4, 0, "−0.40"),
    ],
)
def test_a_correlation_is_called_what_it_is(rank, records, told):
    assert calibration(rank, records) == told


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
        ("<s>[INST]", "[/INST]"),
        ("<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
        ("", ""),
    ],
    ids=["ChatML", "Mistral", "Gemma", "no template"],
)
def test_what_prompts_have_alike_is_the_template_and_no_word_of_theirs(before, after):
    said = ("Write of bees, please.", "Write of a mill, please.", "Write <b>, please.")
    prompts = [before + words + after for words in said]
    assert shared_frame(prompts) == (before, after)
    assert shared_frame(prompts[:1] * 2) == ("", "")
