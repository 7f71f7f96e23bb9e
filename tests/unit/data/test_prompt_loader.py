"""The order of prompts depends on seed and episode alone, and goes on from any place."""

import itertools

from openrlhf_orz.data.prompts import PromptLoader


def loader(n=10, seed=3):
    return PromptLoader([f"p{i}" for i in range(n)], lambda items: items[0], seed)


def test_each_episode_has_every_prompt_once_in_its_own_order():
    prompts = loader()
    first, second = list(prompts), list(prompts)
    assert sorted(first) == sorted(second) == sorted(prompts.dataset) and first != second
    assert first == list(loader()) != list(loader(seed=4))


def test_goes_on_from_any_place_and_over_the_end_of_an_episode():
    whole = loader()
    expected = list(whole) + list(whole)
    for cut in range(20):
        prompts = loader()
        drawn = list(itertools.islice(prompts, min(cut, 10)))
        if cut > 10:
            drawn += list(itertools.islice(prompts, cut - 10))
        assert prompts.drawn == cut
        state = prompts.state_dict()
        resumed = loader()
        resumed.load_state_dict(state)
        rest = list(resumed)
        if len(drawn) + len(rest) < 20:
            rest += list(resumed)
        assert drawn + rest == expected, cut
