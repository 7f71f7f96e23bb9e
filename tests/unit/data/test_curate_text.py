"""Curation's judgements on single questions: cleaning, exclusion, language, sameness."""

import json
import random

import pytest

from openrlhf_orz.data.curate.clean import References, clean_text, plainly_fine
from openrlhf_orz.data.curate.config import Clean, Exclude
from openrlhf_orz.data.curate.dedup import answer_key, choose
from openrlhf_orz.data.curate.exclude import excluded
from openrlhf_orz.data.curate.language import fasttext_detector, language_of
from openrlhf_orz.data.curate.normalise import clean_answer, clean_question, figure_missing, unshowable
from openrlhf_orz.data.curate.signature import signature
from openrlhf_orz.data.curate.similarity import reworded, same_question


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("Problem 12. Find $x$.", "Find $x$."),
        ("3. (20 points) Find $x$.", "Find $x$."),
        ("【例2】求$x$的值。", "求$x$的值。"),
        ("12 men dig a hole.", "12 men dig a hole."),
        ("3 points lie on a line.", "3 points lie on a line."),
        ("(1) Find $x$. (2) Find $y$.", "(1) Find $x$. (2) Find $y$."),
        (
            "Let $S$ be the [set](https://example.org/wiki/Set) of\u00a0primes. See https://example.org/x",
            "Let $S$ be the set of primes. See",
        ),
        ("Ｆｉｎｄ　２＋２．", "Find 2+2．"),
        ("What is 10²?", "What is 10^{2}?"),
        ("a\r\n\r\n\r\n\r\nb   c\u200b", "a\n\nb c"),
        ("Find the sum\u2028of the first\u2029primes.", "Find the sum\nof the first\nprimes."),
        ("How many of Janetâ€™s eggs?", "How many of Janet’s eggs?"),
    ],
)
def test_question_is_cleaned(raw, clean):
    assert clean_question(raw) == (clean, False)


def test_images_are_noticed_and_formulas_kept():
    assert clean_question("Find ![$x^2$](a.png) now.") == ("Find $x^2$ now.", False)
    for lost in (
        "Find it: ![](a.png)",
        "<image>\nWhat is $AB$?",
        "<image_1> What is $CB$?",
        "See https://a.example/2024/fig-12.png . Find the area.",
        "https://a.example/2024_abc.jpg?height=300 What is the radius?",
    ):
        assert clean_question(lost)[1]
    assert clean_question("See https://a.example/page and find $x$.") == ("See and find $x$.", False)


@pytest.mark.parametrize(
    "text",
    [
        "In the figure below, find $x$.",
        "Find the area of the triangle shown below.",
        "The graph of $f$ is shown below. Find $f(2)$.",
        "Use the table below to find the mean.",
        "Refer to the diagram. What is the angle at $C$?",
        "According to the figure, how many cubes are visible?",
        "In Figure 3, find the length $DE$.",
        "(see figure) What is the measure of angle $B$?",
        "Fig. 2 shows a circle with centre $O$. Find its radius.",
        "The diagram shows a rectangle and two squares. Find its area.",
        "The figure shows two circles. What is the distance of the centres?",
    ],
)
def test_a_figure_that_is_not_there_is_noticed(text):
    assert figure_missing(text)
    assert not figure_missing(text + " [asy]draw((0,0)--(1,1));[/asy]")


@pytest.mark.parametrize(
    "text",
    [
        "A line segment in the drawing that is 4.75 inches long represents how many feet?",
        "Find the area of the figure formed by the points $(0,0)$, $(1,0)$ and $(0,1)$.",
        "Let $G$ be the graph of $y = x^2$. Find its lowest point.",
        "Toby took 20 photos, and deleted the bad picture of a cat. How many are left?",
        "The numbers 1, 2 and 3 are shown below their squares. Find the sum.",
    ],
)
def test_words_of_figures_alone_are_fine(text):
    assert not figure_missing(text)


@pytest.mark.parametrize("answer", ["notfound", "Not Found", "unknown", "N/A", "None", "\\text{unknown}", "[missing]"])
def test_what_stands_for_a_missing_answer_is_refused(answer):
    row = {"question": "What is $1+1$?", "answer": answer, "meta": {}}
    assert clean_text(row, Clean())[0] == "answer_empty"


def test_what_cannot_be_shown():
    assert unshowable("a\x00b") == "U+0000 at 1"
    assert unshowable("a\ufffd") == "U+FFFD at 1"
    assert unshowable("α + 中 = é\n") is None


@pytest.mark.parametrize(
    "raw, clean", [("$\\frac12$", "\\frac12"), ("\\boxed{7}", "7"), ("Answer: 7", "7"), ("$a$ and $b$", "$a$ and $b$")]
)
def test_answer_is_cleaned(raw, clean):
    assert clean_answer(raw) == clean


def test_plain_numbers_need_no_grader():
    """What the fast path lets through, the grader accepts; what it does not know goes to the grader."""
    chance = random.Random(0)
    answers = [f"{chance.randint(-9999, 9999)}" for _ in range(6)] + [f"{chance.random() * 99:.4f}" for _ in range(6)]
    answers += [f"\\frac{{{chance.randint(0, 99)}}}{{{chance.randint(1, 99)}}}" for _ in range(6)]
    answers += [f"{chance.randint(0, 99)}/{chance.randint(1, 99)}" for _ in range(6)] + [
        "007",
        "0",
        "-0",
        "1.50",
        "123456789012345",
    ]
    assert all(map(plainly_fine, answers))
    references = References(workers=1)
    assert [references._ask(answer) for answer in answers] == [None] * len(answers)
    assert not any(map(plainly_fine, ["1/0", "\\frac{1}{0}", "5 cm", "x", "", "1,000"]))
    found = references.check(["\\sqrt{2}", "7", ")) ((", "(1,2)"])
    references.close()
    assert found["\\sqrt{2}"] is None and found["7"] is None and found["(1,2)"] is None
    assert found[")) (("] == "answer_unparsable"


KEPT = [
    ("What is the sum of the first five primes?", "28"),
    ("Points $A$, $B$, $C$ lie on a line. If $AB = 5$ and $BC = 3$, find $AC$.", "8"),
    ("Show your answer as a fraction: what is 0.5?", "\\frac{1}{2}"),
    ("It can be shown that $n^2+1$ is prime for $n = 4$. Find $n^2 + 1$.", "17"),
    ("For events with $P(A) = 1/2$, $P(B) = 1/3$ and $P(C) = 1/6$, find $P(A)P(B)P(C)$.", "1/36"),
    ("Find the least $n$ such that (a) $n$ is even, (b) $n$ is a multiple of 5, (c) $n > 7$.", "10"),
    ("A function satisfies (i) $f(1) = 2$; (ii) $f(x+1) = f(x) + 3$. Find $f(4)$.", "11"),
    ("A circle through A touches the line through B. The distance from B to C is 5. Find it doubled.", "10"),
    ("Ann has the option of paying $5 a day. How much does she pay in 4 days?", "20"),
    ("Let $N$ be the number of true statements a liar makes. Find $N$.", "0"),
    ("Determine the number of integers $n$ for which $n^2 < 10$.", "7"),
    ("已知集合 $A=\\{1,2\\}$, 则 $A$ 的子集个数为 $(\\quad)$.", "4"),
    ("计算 $2+3=(\\quad)$", "5"),
    ("A die shows (1) an even number, then (2) a number above 3. What is the chance?", "1/4"),
    ("Show your work. What is $3 = x + 1$ solved for $x$?", "2"),
]
LEFT_OUT = [
    ("multiple_choice", "What is 2+2?\n(A) 3 (B) 4 (C) 5", "B"),
    ("multiple_choice", "What is 2+2?\nA. 3\nB. 4\nC. 5\nD. 6", "4"),
    ("multiple_choice", "What is 2+2? A) 3 B) 4 C) 5 D) 6", "4"),
    ("multiple_choice", "What is 2+2? $\\textbf{(A)}\\ 3\\qquad\\textbf{(B)}\\ 4\\qquad\\textbf{(C)}\\ 5$", "4"),
    ("multiple_choice", "The value is\n(a) 3\n(b) 4\n(c) 5\n(d) 6", "4"),
    ("multiple_choice", "Which of the following is prime: 4, 6, 7?", "7"),
    ("multiple_choice", "下列说法正确的是（ ） A．3 B．4 C．5 D．6", "B"),
    ("multiple_choice", "Which is prime? (i) 4 (ii) 9 (iii) 11 (iv) 15", "(iii)"),
    ("multiple_choice", "The value of $6^3$ is\n1. 10\n2. 216\n3. 15\n4. 25", "2"),
    ("multiple_choice", "The value of $8^2$ is: (1) 16 (2) 64 (3) 80 (4) 28", "(2)"),
    ("multiple_choice", "若 $x>0$, 则最小值是 $(\\quad)$\nA. 1 B. 2 C. 3 D. 4", "B"),
    ("multi_part", "(a) Find $x$. (b) Find $y$.", "3"),
    ("multi_part", "(1) If $a=2$ find $3a$; (2) if $b=5$ find $b^2$.", "6; 25"),
    ("multi_part", "(1) Given that $x=3$, compute $x^2+1$; (2) given that $y=4$, compute $y^3$.", "10, 64"),
    ("multi_part", "Let $f(x)=x^2$. (1) $f(3)=$ ____ ; (2) $f(5)=$ ____ .", "9, 25"),
    ("multi_part", "Solve each: a) $2x=8$ b) $3y=27$", "4, 9"),
    ("multi_part", "Let $x = 2$.\n1) What is $x^2$?\n2) What is $x^3$?", "4, 8"),
    ("multi_part", "已知$x=2$。（1）求$x^2$；（2）求$x^3$。", "8"),
    ("proof", "Prove that $\\sqrt{2}$ is irrational.", "irrational proof"),
    ("proof", "Let $a > 0$. Show that $a + 1/a \\ge 2$.", "2"),
    ("proof", "Demonstrate that the medians meet.", "1"),
    ("proof", "Show $\\angle ABC = 90^\\circ$.", "90"),
    ("proof", "Argue that no such integer exists.", "0"),
    ("proof", "证明：$\\sqrt{2}$是无理数。", "1"),
    ("proof_and_answer", "Find, with proof, the least $n$.", "5"),
    ("guessable", "Is 17 prime?", "Yes"),
    ("guessable", "Is it true that $7 > 5$? Answer yes or no.", "\\text{yes}"),
    ("guessable", "Who has a winning strategy, Ann or Bob?", "Ann"),
    ("open_ended", "Explain why the sky is blue.", "scattering"),
    ("open_ended", "Describe the graph of $y = x$.", "a line"),
]


@pytest.mark.parametrize("question, answer", KEPT)
def test_ordinary_questions_are_kept(question, answer):
    assert excluded(question, answer, Exclude()) is None


@pytest.mark.parametrize("kind, question, answer", LEFT_OUT)
def test_what_cannot_be_judged_is_left_out(kind, question, answer):
    found = excluded(clean_question(question)[0], answer, Exclude())
    assert found and found[0] == kind
    assert excluded(question, answer, Exclude(**dict.fromkeys(Exclude.__dataclass_fields__, False))) is None


@pytest.mark.parametrize(
    "question, language",
    [
        ("Find the sum of the first ten odd numbers.", "english"),
        ("Compute $\\int_0^1 x^2 dx$.", "english"),
        ("$2+2=$", "english"),
        ("37 plus 85 plus 12?", "english"),
        ("Compute 8 plus 9 plus 10 plus 11.", "english"),
        ("Combien font trois plus cinq ?", "other"),
        ("求$x$的值。", "chinese"),
        ("已知$f(x)=\\sin x + \\cos x$, 求$f(\\pi)$", "chinese"),
        ("Trouver la somme des dix premiers entiers impairs.", "other"),
        ("最初の十個の奇数の和を求めよ。", "other"),
        ("Найдите сумму первых десяти нечётных чисел.", "other"),
        ("Berechne die Summe der ersten zehn ungeraden Zahlen.", "other"),
        ("Determine $\\alpha + \\beta$ where α and β are the roots.", "english"),
        ("In the Seychelles, Amélie and Zoë share 12 crêpes equally. How many does each get?", "english"),
    ],
)
def test_language(question, language):
    assert language_of(question, fasttext_detector()) == language


def same(one, other, same_answer=True):
    return same_question(signature(one), signature(other), same_answer, 0.5, 0.85) is not None


def test_spelling_does_not_make_another_question():
    a = "Find the largest $x$ with $\\dfrac{1}{2}x \\leq 1,000$ and $x \\cdot 3 > 7$."
    b = "Find  the largest  \\(x\\) with \\(\\frac{1}{2} x \\le 1000\\) and \\(x \\times 3 > 7\\)"
    assert signature(a).exact == signature(b).exact
    assert signature("What is $\\frac12$ of $x^{2}$?").exact == signature("What is \\(\\dfrac{1}{2}\\) of $x^2$").exact
    assert (
        signature("Find it (see $x$). Give your final answer in simplest form.").exact
        == signature("Find it, see $x$").exact
    )
    assert same("Find $x$ if $x+2=5$ and $y=3$.", "Determine $t$ if $t+2=5$ and $s=3$.")
    assert same("Tom buys three apples for 5 dollars each.", "Tom buys 3 apples for 5 dollars each.")


@pytest.mark.parametrize(
    "one, other",
    [
        ("Factor $z^4 - z^2 + 1$ over the integers.", "Factor $z^4 + z^2 + 1$ over the integers."),
        ("What is 37+85?", "What is 85+37?"),
        ("Compute $(2+3) \\cdot 4$.", "Compute $2+(3 \\cdot 4)$."),
        ("Compute (2+3)*4.", "Compute 2+(3*4)."),
        ("Find $x^{2+y}$.", "Find $x^2+y$."),
        ("Find $\\frac{a+b}{2}$ for all.", "Find $\\frac{a}{b+2}$ for all."),
        ("State the final answer to the problem: 5 + 6 =", "State the final answer to the problem: 5 + 7 ="),
        ("Give the answer in lowest terms: $1/2 + 1/3$.", "Give the answer in lowest terms: $1/2 + 1/4$."),
        ("Find the sum of the roots of $x^2-5x+6$.", "Find the product of the roots of $x^2-5x+6$."),
        ("Find the largest prime below 100.", "Find the smallest prime below 100."),
        ("Let $x + 2y = 5$ and $x - y = 1$. Find $x$.", "Let $x + 2y = 5$ and $x - y = 1$. Find $y$."),
        (
            "How many ways to arrange the letters of RADII are there?",
            "How many ways to arrange the letters of PROOF are there?",
        ),
        ("Ann buys 60 more than Bob, who buys 20 more.", "Ann buys 60 fewer than Bob, who buys 20 more."),
        ("Sam has 5 books and buys 7 more. How many?", "Sam has 5 books and buys 8 more. How many?"),
    ],
)
def test_numbers_signs_and_what_is_asked_make_another_question(one, other):
    assert not same(one, other, same_answer=False) and not same(one, other, same_answer=True)


MIA = "Mia buys 6 notebooks for $4 each and 3 pens for $2 each. How many dollars does she spend in all?"
TRIANGLE = (
    "In right triangle $ABC$, $AB = 5 \\cdot \\frac{1}{29}$ and point $M$ is 5 cm from A. Find $BM$ in a 4-inch box."
)
SAME_QUESTION = [
    (MIA, MIA + "\n\nThink step by step, then give your final answer inside \\boxed{}."),
    (MIA, MIA + " Let's think step by step and output the final answer within \\boxed{}."),
    (MIA, f"**{MIA}**"),
    (MIA, MIA.upper()),
    (MIA, json.dumps({"question": MIA})),
    (MIA, f'Solve the exercise below one step after another. The last line must look like "Result: X".\n\n{MIA}'),
    (TRIANGLE.replace(" from A", ""), TRIANGLE.replace(" from A", "").upper()),
    (TRIANGLE, TRIANGLE.replace("\\cdot", "\\bullet")),
    (TRIANGLE, TRIANGLE.replace("\\frac{1}{29}", "1/29")),
    (TRIANGLE, TRIANGLE.replace("$M$", "M")),
    (TRIANGLE, TRIANGLE.replace("from A", "from $A$")),
    (TRIANGLE, TRIANGLE.replace("$AB", "$AB^{}_{}")),
    (TRIANGLE, TRIANGLE.replace("5 cm", "$5\\text{ cm}$")),
    (TRIANGLE, TRIANGLE.replace("4-inch", "$4$-inch")),
]


@pytest.mark.parametrize("one, other", SAME_QUESTION)
def test_frames_capitals_and_notation_do_not_make_another_question(one, other):
    assert same(one, clean_question(other)[0])


def test_embeddings_join_rewordings_only():
    ask = "A train covers 120 km in 2 hours. What is its speed in km per hour?"
    reword = "Within 2 hours a railway train travels a distance of 120 kilometres; how fast does it go?"
    assert reworded(signature(ask), signature(reword))
    assert not reworded(signature(ask), signature(ask.replace("120", "240").replace("2 h", "4 h")))
    line = "The graph of $y = 5x + 24$ meets the graph of $y = x^2$ in two points. Find the square of their distance."
    assert not reworded(signature(line), signature(line.replace("+", "-")))
    largest = "Find the largest two-digit prime whose digits add up to 10 and differ by 4."
    assert not reworded(signature(largest), signature(largest.replace("largest", "smallest")))


def test_different_answers_need_the_same_words():
    one = "How many ways are there to put 5 balls in 2 boxes if the balls are not distinguishable but the boxes are?"
    assert not same(
        one,
        "How many ways are there to put 5 balls in 2 boxes if the balls are distinguishable but the boxes are not?",
        False,
    )
    two = "How many ways are there to put 4 {} balls into 2 {} boxes?"
    words = ("distinguishable", "indistinguishable")
    assert not same(two.format(*words), two.format(*reversed(words)), False)
    club = "A club has 26 members, of whom 16 came: half of the older ones and all of the others. How many {} came?"
    assert not same(club.format("cats"), club.format("dogs"), False)
    assert same(club.format("people"), club.format("poeple").replace("A club", "The club"), False)


def test_kept_row_of_a_group():
    rows = [{"answer": a, "source": s} for a, s in [("7", "b"), ("7.0", "a"), ("x = 7", "b"), ("7", "a"), ("8", "a")]]
    assert answer_key("x = 7") == answer_key("7.0") == answer_key(" 7. ") == "7"
    assert choose(rows, "ab".index) == (2, True)  # 7 has the votes; of these the longest
    assert choose([rows[0], rows[3]], "ab".index) == (1, False)  # equally long: the better source
