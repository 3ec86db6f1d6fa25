"""Generations as models really write them, each with its right reading: None where there is none to be had.

By kind. A letter is of the options of CHOICE, or of those named; a number is compared by value; a word is one of a pair.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxykd.evaluation.answers import Question

CHOICES = ("a trout", "a whale", "a hawk", "a newt")
NUMERIC = ("12", "120", "1,200", "12,000")
LISTED = "A. a trout\nB. a whale\nC. a hawk\nD. a newt"


@dataclass(frozen=True)
class Judged:
    kind: str
    question: Question
    generation: str
    reading: str | None


def letter(reading: str | None, *generations: str, choices: tuple[str, ...] = CHOICES) -> list[Judged]:
    question = Question("t/0", "Which is a mammal?", choices, "B")
    return [Judged("letter", question, generation, reading) for generation in generations]


def number(reading: str | None, *generations: str) -> list[Judged]:
    return [
        Judged("number", Question("t/0", "How many?", None, "18"), generation, reading) for generation in generations
    ]


def word(kind: str, reading: str | None, *generations: str) -> list[Judged]:
    return [Judged("word", Question("t/0", "Is it?", None, kind), generation, reading) for generation in generations]


def latex(gold: str, right: bool, *generations: str, kind: str = "latex") -> list[Judged]:
    """The reading is `gold` if `right`, and anything but that if not."""
    question = Question("t/0", "Find it.", None, gold)
    return [Judged(kind, question, generation, gold if right else None) for generation in generations]


GENERATIONS = [
    # A letter, bare or in any brackets.
    *letter("B", "B", "b", "B.", "b.", "(B)", "(b)", "[B]", "{B}", "<B>", '"B"', "'B'", "B)", "b)", "B:", "**B**", "*B*",
            "`B`", "__B__", "$B$", "Option B", "Choice B", "option (b)", "B\n", "  B  ", "B!", "### B"),
    *letter("B", "B. a whale", "B) a whale", "(B) a whale", "B: a whale", "B - a whale", "B \u2013 a whale", "**B. a whale**", "b) a whale",
            "[B] a whale", "Option B: a whale", "B, a whale", "a whale", "A whale.", "**a whale**"),
    # A sentence that says so.
    *letter("B", "The answer is B.", "The answer is (B)", "The answer is: B", "The correct answer is B. a whale", "Answer: B", "Answer: (b)",
            "ANSWER: B", "Ans: B", "Answer:\nB", "The answer is:\n\n(B) a whale", "The correct option is B", "The right choice is (B).",
            "The best answer is option B", "The answer is option [B]", "The answer is therefore B.", "The answer would be B",
            "The answer must therefore be B.", "The answer to the question is B.", "Final Answer: B", "**Final Answer:** B", "**Answer**: B",
            "The answer is **B**.", "My answer: B", "I think the answer is B, a whale", "The answer is a whale.", "The answer is: a whale, which nurses.",
            "So the answer is B because whales nurse.", "The correct answer is **(B) a whale**."),
    *letter("B", "B is correct.", "B is the correct answer.", "Option B is right.", "(B) is the best answer", "(b) is correct", "B because whales nurse their young.",
            "I would go with B.", "I choose B", "I'd pick (B).", "Whales nurse, so B.", "Therefore, B", "It must be (B).", "I say B.",
            "Whales are mammals.\n\nB", "Whales are mammals.\n\n(B)", "Let me think. Trout are fish.\nTherefore, the answer is (B)."),
    # Boxed, tagged, thought.
    *letter("B", r"\boxed{B}", r"$\boxed{B}$", r"\boxed{\text{B}}", r"\boxed{\textbf{(B)}}", r"\boxed{\mathrm{B}}", r"\[\boxed{B}\]", r"\fbox{B}",
            r"First \boxed{A}? No: \boxed{B}.", r"The answer is $\boxed{B}$.", r"\boxed{B. \text{a whale}}",
            "<answer>B</answer>", "<answer>\nB\n</answer>", "<answer>(B) a whale</answer>", "<answer>B", "A first guess is A.\n<answer>B</answer>",
            "<final_answer>B</final_answer>", "<think>A? The answer is A.</think>B", "The answer is A? No.\n</think>\n\nB",
            "<think>Hm.</think>\n<answer>B</answer>", "so A is out</think>The answer is B.", "#### B"),
    # Options restated, before and after.
    *letter("B", f"B\n\n{LISTED}", f"The answer is B.\n\n{LISTED}", f"{LISTED}\n\nB", f"{LISTED}\n\nThe answer is B.", f"{LISTED}\n\nB. a whale",
            f"B. a whale\n\n{LISTED}", "B. a whale\n\nA. a trout is a fish.\nC. a hawk is a bird.\nD. a newt is an amphibian.",
            "A. a trout - no, a fish\nB. a whale - yes\nC. a hawk - no, a bird\nD. a newt - no\nAnswer: B"),
    *letter(None, LISTED, "Options:\n" + LISTED, "(A) a trout\n(B) a whale\n(C) a hawk\n(D) a newt", "A) a trout\nB) a whale\nC) a hawk\nD) a newt",
            "A. a trout, B. a whale, C. a hawk, D. a newt", "A. a trout\nB. a whale\nC.", "A. a trout, B. a whale, C. a hawk, D.", "A, B, C", "A), B), C)"),
    *letter("B", "A. a trout, B. a whale, C. a hawk, D. a newt\n\nB", "A. a trout, B. a whale, C. a hawk, D. a newt\nThe answer is B."),
    # Changed minds, denials.
    *letter("B", "The answer is not A. The answer is B.", "At first the answer is A. On reflection, the answer is B.", "The answer is B, not C.",
            "A is not correct. B is correct.", "The answer is B.\n\nQuestion: Which is a bird?\nAnswer: C", "B\n\nQ: Which is a fish?\nA: A",
            "It is not a trout; it is a whale."),
    *letter(None, "The answer is not (B).", "(A) or (B)", "The answer is A or B.", "It is not a whale.", "A whale or a hawk, who knows; a newt too.", "Z", "The answer is Z.",
            "", "   ", "I do not know.", "I cannot answer that.", "Because I like them.", "Beautiful", "<think>The answer is B", "None of the above",
            "All of them"),
    *letter("C", "The answer is C, a hawk; B is wrong.", "C is correct, B is incorrect."),
    *letter("C", "1,200", "1200", "The answer is 1,200.", "The answer is $1200", choices=NUMERIC),
    *letter("B", "120", "The answer is 120.", r"\boxed{120}", choices=NUMERIC),
    *letter("A", "The answer is A deep ocean.", "The answer is A", choices=("deep ocean", "a shallow sea", "a lake", "a pond")),
    # Numbers: how they are grouped.
    *number("12500", "The answer is 12,500.", r"\boxed{12{,}500}", r"\boxed{12\,500}", "The answer is 12 500", "The answer is 12\u202f500.", "12\u00a0500",
            r"The answer is 12\;500", r"\boxed{12,\!500}", "The answer is 12'500", "The answer is $12,500.00", r"The answer is \$12,500", "12500.",
            "The answer is 12.5 thousand", "The answer is 1.25e4", r"$\boxed{1.25 \times 10^4}$", r"The answer is 1.25 \cdot 10^{4}",
            "The answer is 1.25 \u00d7 10\u2074.", "The answer is 1.25 * 10^4"),
    *number("100000", "The answer is 1e5", "1E5", "1e+05", r"\boxed{10^5}", r"\boxed{10^{5}}", "The answer is 1,00,000.", "The answer is 100 thousand."),
    *number("3000000", "The answer is 3 million.", "The company made $3 million", "The answer is 3,000,000 dollars"),
    # Fractions.
    *number("7/2", "The answer is 3 1/2", "The answer is 3 1/2 cups.", r"\boxed{3\frac{1}{2}}", r"\boxed{3 \frac12}", r"\boxed{\frac{7}{2}}", r"\boxed{\dfrac{7}{2}}",
            r"\boxed{\frac72}", "The answer is 7/2.", "The answer is 3.5", "3.50"),
    *number("-1/2", r"\boxed{-\frac{1}{2}}", r"\boxed{\frac{-1}{2}}", "The answer is -0.5", "The answer is \u22121/2", "The answer is -.5"),
    # Signs and units.
    *number("-18", "The answer is -18", "The answer is \u221218.", "The answer is \u201318", "The answer is -$18", "The answer is $-18", r"\boxed{-18}", "#### -18", "#### \u221218"),
    *number("18", "18", "18.", "**18**", "The answer is 18.", "The answer is $18.", "The answer is \u20ac18", "The answer is 18%", r"\boxed{18\%}", r"\boxed{18^\circ}",
            r"\boxed{18\text{ dollars}}", r"\boxed{\$18}", "The answer is 18 dollars a day.", "The answer is 18km.", "The answer is 18.00", "She earns 18 dollars.",
            "#### 18", "16-3-4=9, 9*2=18\n#### 18", "#### $18", "**Answer: 18**", "Answer:\n\n18", "The final answer is $\\boxed{18}$.", "The answer is x = 18.",
            r"\boxed{x = 18}", "The answer is 9 * 2 = 18", "The answer is 9*2=18 dollars", "So 9 x 2 = 18.", "<answer>18</answer>", "<answer>$18</answer>",
            "first \\boxed{9}, then \\boxed{18}", "16 eggs\n</think>\nThe answer is 18", "<think>20?</think>18", "The answer is 18, not 20.",
            "The answer is about 18.", "The answer is N, where N = 18", "#### Step 1: 16 - 7 = 9\n#### Step 2: 9 * 2 = 18\nThe answer is 18.",
            "The answer is 18.\n\nQuestion: How many more?\nThe answer is 7.", "16 \u2212 3 \u2212 4 = 9, and 9 \u00d7 2 = 18", r"\[ 9 \times 2 = 18 \]", r"Thus \boxed{18} dollars, from 16 eggs.",
            "18 (that is 9 * 2)"[:2], "The total is 18.", "Total: 18 eggs", "= 18", "It is 18!"),
    *number(None, "eighteen", "", "I do not know.", "many", "<think>18", "The answer is N."),
    *number("2", "The answer is 10-8 = 2", "3 - 1 = 2", "5-3=2"),
    # Words.
    *word("invalid", "invalid", "invalid", "Invalid.", "not valid", "The argument is not valid.", "It isn't valid.", "It isn\u2019t valid", "The argument is not deductively valid.",
          "This cannot be considered valid.", "The argument is invalid.", "**Answer:** invalid", "The answer is: not valid", r"\boxed{\text{invalid}}",
          "Not valid: the premises do not entail it.", "<answer>invalid</answer>", "</think>Invalid", "No, the argument is invalid.", "The conclusion is not necessarily true, so the argument is invalid."),
    *word("invalid", "valid", "valid", "Valid", "The argument is valid.", "not invalid", "The argument is deductively valid.", "It is not sound but valid.", "Yes, it is valid.", "The answer is valid."),
    *word("invalid", None, "It depends.", "valid or invalid", "", "Perhaps."),
    *word("False", "false", "False", "false.", "FALSE", "**False**", "The answer is False.", "not true", "That is not true.", "not ( True ) is False, so the answer is False", "not True = False",
          "True and False = False", "It evaluates to False.", r"\boxed{False}", "<answer>False</answer>"),
    *word("False", "true", "True", "not false", "The answer is True", "Answer: True."),
    *word("False", None, "True or False, who can say", "Falsehood", "?", "false or true"),
    *word("Yes", "yes", "Yes", "yes.", "YES!", "Yes, he did.", "The answer is yes.", "Answer: Yes", "</think>\n\nYes", "**Yes**", "She did not, he did. So the answer is yes."),
    *word("Yes", "no", "No", "no, he did not.", "The answer is no.", "The answer is: **No**", "No.\nYes would be wrong."),
    *word("Yes", None, "Yes or no?", "Maybe", "Yesterday", "nobody"),
    # LaTeX and other text.
    *latex(r"\frac{3}{4}", True, r"\boxed{\frac{3}{4}}", r"\boxed{\dfrac{3}{4}}", r"\boxed{\frac34}", "The answer is 3/4.", "The answer is 0.75", r"The answer is $\dfrac{3}{4}$.", r"\boxed{x = \frac{3}{4}}",
           r"First \boxed{\frac{1}{4}}, no: \boxed{\frac{3}{4}}", r"\(\boxed{\tfrac{3}{4}}\)"),
    *latex(r"\frac{3}{4}", False, r"\boxed{\frac{4}{3}}", "3/5", r"\boxed{-\frac{3}{4}}", "34"),
    *latex(r"2\sqrt{3}", True, r"\boxed{2\sqrt{3}}", r"\boxed{2\sqrt3}", r"The answer is $2\sqrt{3}$.", r"\boxed{2 \sqrt{3}}"),
    *latex(r"2\sqrt{3}", False, r"\boxed{3\sqrt{2}}", r"\boxed{2\sqrt{30}}"),
    *latex(r"\frac{\sqrt{2}}{2}", True, r"\boxed{\frac{\sqrt{2}}{2}}", r"\boxed{\frac{\sqrt{2}}{{2}}}"),
    *latex("(1,2)", True, r"\boxed{(1,2)}", r"\boxed{(1, 2)}", r"\boxed{\left(1,2\right)}", "The answer is (1, 2)."),
    *latex("(1,2)", False, r"\boxed{(2,1)}", r"\boxed{[1,2]}", "12"),
    *latex(r"\{1,2\}", True, r"\boxed{\{1,2\}}", r"\boxed{\{1, 2\}}"),
    *latex(r"x^2+1", True, r"\boxed{x^2+1}", r"\boxed{x^2 + 1}", r"\boxed{x^{2}+1}"),
    # Equal by algebra alone.
    *latex(r"2\sqrt{3}", True, r"\boxed{\sqrt{12}}", kind="algebra"),
    *latex(r"\frac{\sqrt{2}}{2}", True, r"\boxed{\frac{1}{\sqrt{2}}}", kind="algebra"),
    *latex(r"\{1,2\}", True, r"\boxed{\{2,1\}}", kind="algebra"),
    *latex(r"x^2+1", True, r"\boxed{1+x^2}", kind="algebra"),
    *latex("a b c", True, "The answer is a b c", "The answer is a, b, c.", "Sorted:\na b c", "<answer>a b c</answer>", "**a b c**"),
    *latex("a b c", False, "b a c", "The answer is a b", "", "a b c d"),
    *latex("} ) ]", True, "The answer is } ) ]", "} ) ]", "The answer is: } ) ]", "<answer>} ) ]</answer>"),
    *latex("} ) ]", False, "The answer is } ]", "] ) }"),
]  # fmt: skip
