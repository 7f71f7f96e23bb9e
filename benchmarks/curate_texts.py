"""Hand-written texts for the labelled pool of benchmarks/curate.py: statements, yes/no questions, other languages.

`{a}` to `{d}` are numbers that the pool fills in, so that no two rows are the same.
"""

CLAIMS = [
    "the sum of {a} consecutive integers starting at an odd number is divisible by {a} whenever {a} is odd",
    "$n^{{{a}}} - n$ is divisible by 6 for every positive integer $n$ congruent to {b} modulo 6",
    "for all positive reals $x, y$ we have $\\frac{{x}}{{y}} + \\frac{{y}}{{x}} \\ge 2 - \\frac{{1}}{{{a}}}$",
    "the medians of a triangle with sides {a}, {b} and {c} meet in one point",
    "$\\sqrt{{{a}}} + \\sqrt{{{b}}}$ is irrational",
    "there are infinitely many primes of the form ${a}k + 1$",
    "every graph with {a} vertices has two vertices of equal degree",
    "the function $f(x) = x^{{{a}}} + {b}x$ is strictly increasing",
    "among any {a} integers there are two whose difference is divisible by ${a} - 1$",
    "a sequence with $a_1 = {a}$ and $a_{{n+1}} = \\sqrt{{a_n + {b}}}$ converges",
]
PROOF_FORMS = [
    "Prove that {claim}.", "Show that {claim}.", "Demonstrate that "
                                                 "{claim}.", "Prove: {claim}.", "Justify that {claim}.",
    "Let us consider the following. Prove that {claim}.", "Give a proof that {claim}.", "Prove or disprove: {claim}.",
    "Using induction, prove that "
    "{claim}.", "Verify that {claim}.", "Establish that {claim}.", "Please prove that {claim}.",
    "Prove rigorously that {claim}.", "Write a proof of the fact that {claim}.", "Hence show that {claim}.",
    "In this exercise you will prove that "
    "{claim}.", "证明：{claim}。", "求证：{claim}。", "Provide a proof showing that {claim}.",
]  # fmt: skip
YES_NO = [
    ("Is ${a}^{b} + {c}$ divisible by {d}?", "Yes"), ("Is {a}{b}{c} a prime number?", "No"),
    ("Does the equation $x^2 + {a}x + {b} = 0$ have real roots? Answer yes or no.", "Yes"),
    ("True or false: the number {a}{b} is a multiple of {c}.", "False"),
    ("Can a {a} by {b} board be tiled by "
     "dominoes?", "No"), ("Determine whether {a}/{b} is greater than {c}/{d}.", "\\text{True}"),
    ("Is it possible to write {a} as a sum of {b} odd numbers?", "It is possible"),
    ("Are there integers $x, y$ with ${a}x + {b}y = {c}$? (Yes/No)", "Yes"),
    ("Do the lines $y = {a}x + {b}$ and $y = {c}x + {d}$ intersect? State \"true\" or \"false\".", "true"),
    ("Two players take turns to remove up to {a} stones from {b}. Who has a winning strategy?", "The first player"),
]  # fmt: skip
PARTS = ["(a) {x} (b) {y}", "a) {x}\nb) {y}", "(i) {x}\n(ii) {y}", "(1) {x} (2) {y}", "1. {x}\n2. {y}", "Part A: {x} "
                                                                                                        "Part B: {y}",
         "Answer the following.\n(a) "
         "{x}\n\n(b) {y}", "**(a)** {x}\n\n**(b)** {y}", "$(a)$ {x}\n$(b)$ {y}", "（1）{x}（2）{y}"]  # fmt: skip
PART_TASKS = [
    "Find the value of ${a}x + {b}$ at $x = {c}$.", "What is {a} times {b}?", "Compute $\\gcd({a}{b}, {c}{d})$.",
    "How many divisors does {a}{b}{c} have?", "Determine the area of a rectangle with sides {a} and {b}.",
    "Calculate ${a}^2 + {b}^2$.", "Solve ${a}x = {b}{c}$ for $x$.", "Prove that ${a}{b}$ is less than ${a}{b}{c}$.",
]  # fmt: skip
CHINESE = [
    "小明有{a}个苹果，他又买了{b}个，请问他一共有多少个苹果？", "已知$x+{a}={b}$，求$x$的值。",
    "计算：${a}\\times{b}-{c}$。",
    "一个长方形的长是{a}厘米，宽是{b}厘米，求它的面积。",
    "若等差数列$\\{{a_n\\}}$的首项为{a}，公差为{b}，则第{c}项是____。",
    "甲、乙两人同时从相距{a}千米的两地出发，{b}小时后相遇，求速度之和。",
    "在$\\triangle ABC$中，$AB={a}$，$AC={b}$，$\\angle A=60^\\circ$，求$BC$。",
    "设函数$f(x)=x^2-{a}x+{b}$，求$f({c})$。",
    "某工厂计划生产{a}台机器，实际每天比计划多生产{b}台，结果提前{c}天完成，求原计划每天生产多少台。",
    "求{a}和{b}的最大公约数。", "从{a}名学生中选出{b}名代表，有多少种不同的选法？", "解方程：${a}x-{b}={c}$",
    "圆的半径为{a}，求圆的周长与面积之比。", "若复数$z={a}+{b}i$，则$|z|^2=$",
    "把{a}拆成若干个正整数之和，使乘积最大，求最大乘积。",
]  # fmt: skip
OTHER = {
    "fr": ["Calculer la somme des {a} premiers entiers "
           "impairs.", "Marie a {a} pommes et en donne {b} à son frère. Combien lui en reste-t-il ?",
           "Déterminer tous les entiers $n$ tels que $n^2 + {a}n + {b}$ soit un carré "
           "parfait.", "Quelle est l'aire d'un triangle de base {a} et de hauteur {b} ?"],
    "de": ["Berechne die Summe der ersten {a} ungeraden "
           "Zahlen.", "Anna hat {a} Äpfel und gibt {b} davon ihrem Bruder. Wie viele bleiben ihr?",
           "Bestimme alle ganzen Zahlen $n$, für die $n^2 + {a}n + {b}$ eine "
           "Quadratzahl ist.", "Wie groß ist der Flächeninhalt eines Dreiecks mit Grundseite {a} und Höhe {b}?"],
    "es": ["Calcula la suma de los primeros {a} números "
           "impares.", "María tiene {a} manzanas y regala {b}. ¿Cuántas manzanas le quedan?",
           "Encuentra todos los enteros $n$ tales que $n^2 + {a}n + {b}$ sea un cuadrado "
           "perfecto.", "¿Cuál es el área de un triángulo de base {a} y altura {b}?"],
    "pt": ["Calcule a soma dos primeiros {a} números "
           "ímpares.", "João tem {a} maçãs e dá {b} ao seu irmão. Com quantas maçãs ele fica?"],
    "it": ["Calcolare la somma dei primi {a} numeri "
           "dispari.", "Maria ha {a} mele e ne regala {b} al fratello. Quante mele le restano?"],
    "nl": ["Bereken de som van de eerste {a} oneven "
           "getallen.", "Jan heeft {a} appels en geeft er {b} aan zijn broer. Hoeveel appels houdt hij over?"],
    "pl": ["Oblicz sumę pierwszych {a} liczb "
           "nieparzystych.", "Ania ma {a} jabłek i oddaje {b} bratu. Ile jabłek jej zostało?"],
    "tr": ["İlk {a} tek sayının toplamını "
           "bulunuz.", "Ayşe'nin {a} elması var ve {b} tanesini kardeşine veriyor. Kaç elması kalır?"],
    "vi": ["Tính tổng của {a} số lẻ "
           "đầu tiên.", "Lan có {a} quả táo và cho em {b} quả. Hỏi Lan còn lại bao nhiêu quả táo?"],
    "ru": ["Найдите сумму первых {a} "
           "нечётных чисел.", "У Маши {a} яблок, она отдала {b} брату. Сколько яблок у неё осталось?",
           "Найдите все целые $n$, при которых $n^2 + {a}n + {b}$ является полным квадратом."],
    "ja": ["最初の{a}個の奇数の和を求めよ。",
    "太郎はりんごを{a}個持っていて、弟に{b}個あげました。残りは何個ですか。"],
    "ko": ["처음 {a}개의 홀수의 합을 구하시오.",
    "철수는 사과 {a}개를 가지고 있고 동생에게 {b}개를 주었다. 남은 사과는 몇 개인가?"],
    "ar": ["احسب مجموع أول {a} أعداد فردية ثم "
           "اطرح {b}."], "hi": ["पहली {a} विषम संख्याओं का योग ज्ञात कीजिए और {b} घटाइए।"],
    "id": ["Hitunglah jumlah {a} bilangan ganjil "
           "pertama.", "Budi mempunyai {a} apel dan memberikan {b} apel kepada adiknya. Berapa apel yang tersisa?"],
    "cs": ["Určete součet prvních {a} lichých čísel.", "Petr má {a} jablek a {b} dá bratrovi. Kolik jablek mu zbude?"],
    "ro": ["Calculați suma primelor {a} numere "
           "impare.", "Determinați toate numerele întregi $n$ pentru care $n^2 + {a}n + {b}$ este pătrat perfect."],
}  # fmt: skip
SYNONYMS = {
    "find": "determine", "determine": "find", "compute": "calculate", "calculate": "compute", "evaluate": "compute",
    "many": "many", "buys": "purchases", "bought": "purchased", "makes": "earns",
    "start": "begin", "starts": "begins", "total": "overall", "altogether": "in total", "also": "additionally",
    "large": "big", "big": "large", "children": "kids", "needs": "requires", "gives": "hands", "wants": "would like",
    "denote": "be", "such": "so", "value": "value", "smallest": "least", "largest": "greatest", "given": "given",
    "points": "points", "went": "travelled", "took": "grabbed", "get": "receive", "gets": "receives", "shop": "store",
    "store": "shop", "house": "home", "car": "vehicle", "if": "suppose", "then": "now", "while": "as",
}  # fmt: skip
PREFIXES = ["Solve the following "
            "problem: ", "Please answer this question. ", "Here is a problem. ", "Consider the following. ",
            "Question: ", "Problem 7. ", "[2012 contest] "]  # fmt: skip
SUFFIXES = [" Give your final answer in simplest form.", " Put your answer in a box.", " Only the answer is needed.",
            " Please reason step by step.", " Round nothing."]  # fmt: skip
NAMES = ["Maria", "Oliver", "Priya", "Tom", "Yuki", "Carlos", "Fatima", "Nadia", "Viktor", "Leila"]
