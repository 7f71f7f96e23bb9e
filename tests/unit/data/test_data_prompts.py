import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from openrlhf_orz.data.prompts import TEMPLATES, chat_template, render
from openrlhf_orz.data.sources import DataError

QUESTIONS = [
    "What is 37+85?",
    r"Find {{prompt}} in \{1, 2\} and {} and {0}.",
    "{% for x in y %}{{ x }}{# gone? #}{% endfor %}",
    "<b>1 < 2 & 3 > 2</b> 'single' \"double\" \\n",
    " a blank at each end, a newline\nand accents: é, 中, 😀 ",
    "%s \\boxed{} \\1 $x$ \\frac{1}{2}",
]
ODD_TEMPLATE = 'it\'s {% raw %} \\ "é😀"\n {{prompt}}\n\n again {{prompt}} }}\n'


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_paper_template_is_table_1():
    prompt = render("paper", "What is 1+1?")
    assert prompt == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: You must "
        "put your answer inside <answer> </answer> tags, i.e., <answer> answer here </answer>. And your final answer "
        "will be extracted automatically by the \\boxed{} tag. What is 1+1?\nAssistant: <think>"
    )


def test_released_template_as_jinja_renders_the_released_code():
    prompt = render("released", "What is 1+1?")
    assert prompt == (
        "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The "
        "Assistant first thinks about the reasoning process in the mind and then provides the User with the answer. "
        "The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> "
        "tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: You "
        "must put your answer inside <answer> </answer> tags, i.e., <answer> answer here </answer>. And your final "
        "answer will be extracted automatically by the \\boxed{} tag.\nThis is the problem:\nWhat is 1+1?\n"
        "Assistant: <think>"
    )


def test_none_is_the_question_as_it_is():
    assert render("none", " {x} ") == " {x} "


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_are_put_in_verbatim(question):
    assert render("Q: {}\nA:", question) == "Q: " + question + "\nA:"
    assert render("\\boxed{} Q: {{prompt}}\nA:", question) == "\\boxed{} Q: " + question + "\nA:"


@pytest.mark.parametrize("template", ["papr", "no place", "{} or {}"])
def test_a_template_without_one_place_is_refused(template):
    with pytest.raises(DataError, match=r"--orz.prompt_template"):
        render(template, "q")


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("template", [*TEMPLATES, ODD_TEMPLATE])
def test_chat_template_renders_as_render_does(tokenizer, template, question):
    tokenizer.chat_template = chat_template(template)
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == render(template, question)

    earlier = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    assert tokenizer.apply_chat_template(earlier + messages, tokenize=False, add_generation_prompt=True) == prompt
    with_response = messages + [{"role": "assistant", "content": " {{1}}</think>"}]
    assert tokenizer.apply_chat_template(with_response, tokenize=False) == prompt + " {{1}}</think>"


def test_chat_template_refuses_a_conversation_without_a_question(tokenizer):
    tokenizer.chat_template = chat_template("paper")
    with pytest.raises(TemplateError):
        tokenizer.apply_chat_template([{"role": "system", "content": "s"}], tokenize=False)


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_chat_template_survives_saving(tokenizer, tmp_path, name):
    tokenizer.chat_template = chat_template(name)
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded.chat_template == chat_template(name)
