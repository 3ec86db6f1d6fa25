"""Answers are read from generations as models really write them, good and bad."""

from __future__ import annotations

import pytest

from proxykd.evaluation.answers import Question

CHOICE = Question("arc_challenge/test/1", "Which is a mammal?", ("a trout", "a whale", "a hawk", "a newt"), "B")
INLINE = Question("bbh/date_understanding/3", "Which date?\nOptions:\n(A) 01/02/2003\n(B) 02/02/2003", None, "(B)")
NUMBER = Question("gsm8k/test/0", "How many eggs?", None, "18")
MANY = Question("gsm8k/test/1", "How much?", None, "1200")
TRUTH = Question("bbh/boolean_expressions/0", "not ( True ) is", None, "False")
FALLACY = Question("bbh/formal_fallacies/1", "Is it valid?", None, "invalid")
SORTED = Question("bbh/word_sorting/0", "Sort: b a c", None, "a b c")
DYCK = Question("bbh/dyck_languages/0", "Complete: [ ( {", None, "} ) ]")
MATH = Question("agieval/math/5", "Find x.", None, r"\frac{3}{4}")


@pytest.mark.parametrize(
    ("question", "kind"),
    [(CHOICE, "letter"), (INLINE, "letter"), (NUMBER, "number"), (TRUTH, "word"), (FALLACY, "word"), (SORTED, "text")],
)
def test_the_kind_of_answer_is_what_the_record_asks_for(question, kind):
    assert question.kind == kind


@pytest.mark.parametrize(
    ("question", "generation"),
    [
        (CHOICE, "B"),
        (CHOICE, " (B)"),
        (CHOICE, "B. a whale"),
        (CHOICE, "**B**"),
        (CHOICE, "The answer is B."),
        (CHOICE, "The answer is (b)"),
        (CHOICE, "The correct answer is: **B. a whale**"),
        (CHOICE, "Answer: B"),
        (CHOICE, "A trout is a fish and a hawk is a bird, so the answer is B because whales nurse."),
        (CHOICE, "The answer is not A. The answer is B."),
        (CHOICE, "At first the answer is A. On reflection, the correct answer is B."),
        (CHOICE, "a whale"),
        (CHOICE, "It must be a whale, which breathes air."),
        (CHOICE, r"So we have $\boxed{B}$."),
        (CHOICE, r"\boxed{\text{B}}"),
        (CHOICE, "<think>Could be A. The answer is A?</think>\nB"),
        (CHOICE, "Whales are mammals.\n\nB"),
        (CHOICE, "Option B is right: (B) whales nurse their young."),
        (CHOICE, "The best answer is option B"),
        (INLINE, "(B)"),
        (INLINE, "The answer is (B) 02/02/2003."),
        (INLINE, "The answer is 02/02/2003"),
        (NUMBER, "She has 16 - 3 - 4 = 9 eggs, 9 * 2 = 18 dollars. The answer is 18."),
        (NUMBER, "16-3-4=9, 9*2=18\n#### 18"),
        (NUMBER, "The answer is $18.00."),
        (NUMBER, "The answer is 9 * 2 = 18"),
        (NUMBER, r"Thus \boxed{18} dollars, from 16 eggs."),
        (NUMBER, "so she earns 18 dollars a day"),
        (MANY, "The answer is 1,200."),
        (TRUTH, "False"),
        (TRUTH, "false."),
        (TRUTH, "not ( True ) is False, so the answer is False"),
        (FALLACY, "The argument is invalid."),
        (FALLACY, "Invalid"),
        (FALLACY, "**Answer:** invalid"),
        (SORTED, "The answer is a, b, c."),
        (SORTED, "Sorted:\na b c"),
        (DYCK, "The answer is } ) ]"),
        (MATH, r"Hence $x = 3/4$. The answer is $\dfrac{3}{4}$."),
        (MATH, r"\boxed{\frac{3}{4}}"),
    ],
)
def test_right_answers_are_read(question, generation):
    assert question.right(question.extract(generation)), question.extract(generation)


@pytest.mark.parametrize(
    ("question", "generation"),
    [
        (CHOICE, "A"),
        (CHOICE, "The answer is C, a hawk; B is wrong."),
        (CHOICE, "Z"),
        (CHOICE, "A whale or a hawk, who knows; a newt too."),
        (CHOICE, "(A) or (B)"),
        (CHOICE, "Because I like them."),
        (CHOICE, "I. do not know"),
        (CHOICE, ""),
        (CHOICE, "<think>The answer is B"),
        (CHOICE, "Beautiful"),
        (INLINE, "(A)"),
        (INLINE, "(C)"),
        (NUMBER, "The answer is 180."),
        (NUMBER, "18 eggs less 2 make 16"),
        (NUMBER, "eighteen"),
        (NUMBER, "The answer is -18"),
        (NUMBER, "The answer is 1.8"),
        (TRUTH, "True or False, who can say"),
        (TRUTH, "The answer is True"),
        (TRUTH, "Falsehood"),
        (FALLACY, "valid"),
        (FALLACY, "It depends."),
        (SORTED, "b a c"),
        (DYCK, "The answer is } ]"),
        (MATH, r"\boxed{\frac{4}{3}}"),
    ],
)
def test_wrong_ones_and_none_are_not_right(question, generation):
    assert not question.right(question.extract(generation)), question.extract(generation)


@pytest.mark.parametrize("generation", ["", "<think>The answer is B", "Because I like them.", "(A) or (B)", "Z"])
def test_what_no_rule_reads_is_no_answer(generation):
    assert CHOICE.extract(generation) is None


def test_a_prompt_letters_the_choices_and_says_how_to_answer():
    assert CHOICE.prompt.splitlines() == [
        "Which is a mammal?",
        "",
        "A. a trout",
        "B. a whale",
        "C. a hawk",
        "D. a newt",
        "",
        "Answer with the letter of the right option alone.",
    ]
    assert TRUTH.prompt.endswith("Answer with True or False alone.")
    assert FALLACY.prompt.endswith("Answer with Valid or Invalid alone.")


def test_subtasks_come_from_the_id():
    assert [q.subtask for q in (CHOICE, INLINE, NUMBER)] == ["", "date_understanding", ""]
    assert Question("mmlu/test/astronomy/4", "?", ("a", "b"), "A").subtask == "astronomy"
