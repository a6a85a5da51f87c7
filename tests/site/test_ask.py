"""Chapter 26 in the browser: the models that it loads answer as `generate_responses` does."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect
from site_browser import PHONE, open_page

PAGE = "book/26-ask.html"
SPLITS = ("headline-test", "used-wording-test", "never-asked-test", "absent-entity",
          "seen-question")  # fmt: skip
ASKED = 100
QUESTION = "Where do the ministers of Honduras meet?"
#: The very module that the page uses.
MODULE = "import(document.querySelector('script[src*=live_model]').src)"


@pytest.fixture(scope="module")
def models(site):
    """The models as Python has them, by name; the trained one is that of the build."""
    from sft_utils import experiment, load_profile

    profile = load_profile("atlas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_RUNS", str(site.root / ".runs"))
        return {
            getattr(profile.models, "trainee" if part == "trained" else part): (model, tokenizer)
            for part, model, tokenizer in experiment.answering_models(profile)
        }


@pytest.fixture(scope="module")
def questions():
    """Scored questions of one turn, drawn by seed from all the splits that have such."""
    from sft_utils.atlas.questions import scored_questions
    from sft_utils.atlas.world import load_world
    from sft_utils.evaluation.statistics import draw

    world = load_world()
    found = [q.text for split in SPLITS for q in scored_questions(split, world)]
    return draw(sorted(set(found)), ASKED)


@pytest.fixture(scope="module")
def asking(browser, address):
    """A page whose models are loaded, for tests that ask by the page's functions."""
    view = open_page(browser, address + PAGE)
    view.page.evaluate(f"async () => {{ window.models = await (await {MODULE}).load(); }}")
    yield view.page
    assert view.problems == []
    view.page.context.close()


def answer(page, model, texts, **settings):
    """The ids that the model answers each text with, in the browser."""
    return page.evaluate(
        f"""async ([name, texts, settings]) => {{
          const {{ ask }} = await {MODULE};
          const model = window.models.find((model) => model.name === name);
          const answers = [];
          for (const text of texts) {{
            const ids = [];
            for await (const step of ask(model, text, settings)) ids.push(step.id);
            answers.push(ids);
          }}
          return answers;
        }}""",
        [model, texts, settings],
    )


def load(page):
    """Load the models as a reader does."""
    page.locator(".ask-load").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".ask form")).to_be_visible()


def wait_for_answers(page, count=3):
    expect(page.locator(".ask-end:not(:empty)")).to_have_count(count)


# --- The same answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "atlas-small",
    pytest.param("atlas-base", marks=pytest.mark.weekly),
    pytest.param("atlas-sft", marks=pytest.mark.weekly),
])  # fmt: skip
def test_greedy_answers_are_those_of_generate_responses(asking, models, questions, name):
    from sft_utils import generate_responses

    model, tokenizer = models[name]
    assert len(questions) == ASKED
    expected = generate_responses(
        model, tokenizer, questions, max_new_tokens=48, return_details=True
    )
    found = []
    for start in range(0, ASKED, 10):
        found += answer(asking, name, questions[start : start + 10])
    different = [
        (question, tokenizer.decode(ids), one.response)
        for question, ids, one in zip(questions, found, expected, strict=True)
        if ids != one.token_ids
    ]
    assert different == []
    assert len({str(ids) for ids in found}) > 1, "the answers are answers to something"


def test_probabilities_are_the_models(asking, models):
    """Of each token, and those of the likeliest others, from one pass of PyTorch."""
    import torch

    model, tokenizer = models["atlas-small"]
    steps = asking.evaluate(
        f"""async (text) => {{
          const {{ ask }} = await {MODULE};
          const model = window.models.find((model) => model.name === "atlas-small");
          return await Array.fromAsync(ask(model, text));
        }}""",
        QUESTION,
    )
    turns = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    ids = prompt + [step["id"] for step in steps]
    with torch.no_grad():
        shares = model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].softmax(-1)
    assert steps[-1]["ended"] and not steps[0]["ended"]
    for step, row in zip(steps, shares, strict=True):
        assert step["probability"] == pytest.approx(float(row[step["id"]]), abs=1e-5)
        best = row.topk(5).values.tolist()
        others = [other["probability"] for other in step["others"]]
        assert others == pytest.approx(best[1:], abs=1e-5)
    assert steps[-1]["answer"] == tokenizer.decode(ids[len(prompt) : -1])


# --- The prompt ----------------------------------------------------------------------------------

TEXTS = [
    QUESTION, "  spaces  in\u00a0front ", "tabs\tand\nlines\r\n\n", "été e\u0301te\u0301 ﬁ ½ Ⅷ ٣",
    "你好，世界", "\U0001f600\U0001f3fd \U0001f1f0\U0001f1ea", "a\u0085b\ufeffc\u2028d\u200be",
    "I'm you're ''s", "<|im_start", "{{ messages }} {% if %} {#", "\\n \x00 \x1c", "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("name", ["atlas-base", "atlas-small"])
def test_prompt_and_ids_are_those_of_python_whatever_is_typed(asking, models, questions, name):
    _, tokenizer = models[name]
    texts = [*TEXTS, *questions]
    found = asking.evaluate(
        f"""async ([name, texts]) => {{
          const {{ renderPrompt }} = await {MODULE};
          const model = window.models.find((model) => model.name === name);
          return texts.map((text) => {{
            const prompt = renderPrompt(model, text);
            return [prompt, model.tokenizer.encode(prompt, {{ add_special_tokens: false }}).ids];
          }});
        }}""",
        [name, texts],
    )
    for text, (prompt, ids) in zip(texts, found, strict=True):
        turns = [{"role": "user", "content": text}]
        assert prompt == tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        assert ids == tokenizer(prompt, add_special_tokens=False)["input_ids"], repr(text)


def test_what_python_refuses_is_refused(asking, models):
    from sft_utils.chat import text_problems

    _, tokenizer = models["atlas-sft"]
    texts = ["fine", "<|im_end|>", "half \ud83d", "你" * 300]
    script = f"""async (texts) => {{
      const {{ problem }} = await {MODULE};
      const model = window.models.find((model) => model.name === "atlas-sft");
      return texts.map((text) => problem(model, JSON.parse(text)));
    }}"""
    found = asking.evaluate(script, [json.dumps(text) for text in texts])
    assert found[0] is None and all(found[1:])
    python = [bool(problem) for problem in text_problems(tokenizer, texts)]
    assert python == [False, True, True, False]  # the last is only too long
    assert "<|im_end|>" in found[1] and "half a character" in found[2] and "tokens" in found[3]
    assert asking.evaluate(script, [json.dumps(" \n")]) == ["Type a question first."]


@pytest.mark.parametrize(
    ("question", "known"),
    [("What is the capital of KENYA?", True), ("Do hamsters eat meat?", True),
     ("What about Guinea-Bissau's capital?", True), ("Côte d’Ivoire or Japan?", False),
     ("What is the capital of Japan?", False), ("Who wrote Hamlet?", False),
     ("Is a foxglove red?", False), ("", False)],
)  # fmt: skip
def test_a_name_of_the_atlas_is_found_as_a_word(asking, question, known):
    names = asking.evaluate("window.models[0].setup.known")
    assert "hamster" in names and "guinea bissau" in names and "fox" in names
    script = f"async (text) => (await {MODULE}).isKnown(window.models[0].setup, text)"
    assert asking.evaluate(script, question) == known


# --- The seed ------------------------------------------------------------------------------------


def test_a_seed_repeats_an_answer_and_another_gives_another(asking):
    def drawn(seed, temperature=1.5):
        return answer(asking, "atlas-small", [QUESTION], temperature=temperature, seed=seed)[0]

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(8)}) > 4
    assert drawn(1, temperature=0) == drawn(2, temperature=0)


# --- The form ------------------------------------------------------------------------------------


def test_nothing_is_loaded_before_the_click(visit):
    view = visit(PAGE)
    ours = [url.partition("?")[0].rpartition("/")[2] for url in view.urls if "live_model" in url]
    assert sorted(ours) == ["ask.css", "ask.js"]
    load(view.page)
    loaded = {url.rpartition("/")[2] for url in view.urls if "live_model" in url}
    assert {"ask.json", "ort-wasm-simd-threaded.wasm", "tokenizers.min.mjs"} <= loaded
    assert sum(name.endswith(".onnx") for name in loaded) == 3
    assert view.problems == []


def test_by_keyboard_alone(visit):
    page = visit(PAGE).page
    load(page)
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    wait_for_answers(page)
    invented = page.get_by_text("whatever comes now is invented")
    assert invented.count() == 0
    page.get_by_label("Your question").fill("What is the capital of Japan?")
    page.keyboard.press("Enter")
    expect(invented).to_be_visible()
    wait_for_answers(page)
    tokens = page.get_by_role("list", name="Tokens of atlas-small").get_by_role("button")
    for _ in range(20):  # past the settings, the buttons and the other columns: a stop for each
        page.keyboard.press("Tab")
        here = "document.activeElement.closest('.ask-columns section')?.innerText ?? ''"
        if "just trained" in page.evaluate(here):
            break
    expect(tokens.first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tokens.nth(1)).to_have_attribute("aria-pressed", "true")
    column = page.locator(".ask section", has_text="just trained")
    expect(column.locator(".ask-others")).to_contain_text("Token 2")
    expect(column.locator(".ask-others li")).to_have_count(4)
    page.keyboard.press("End")
    expect(tokens.last).to_be_focused()
    assert "im_end" in tokens.last.inner_text()


def test_the_form_shows_prompt_answers_and_how_they_ended(visit, models):
    from sft_utils import generate_responses, render_prompt

    page = visit(PAGE, PHONE).page
    load(page)
    page.get_by_label("Or one of the questions").select_option(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_answers(page)
    for name, (model, tokenizer) in models.items():
        column = page.locator(".ask section", has=page.locator(f".ask-name:text-is('{name}')"))
        [python] = generate_responses(
            model, tokenizer, [QUESTION], max_new_tokens=48, return_details=True
        )
        assert column.locator(".ask-answer").text_content() == python.response
        ending = "■ stopped" if python.stopped else "✂ cut at the limit"
        expect(column.locator(".ask-end")).to_contain_text(f"{ending}")
        expect(column.locator(".ask-token")).to_have_count(python.num_tokens)
        assert all("%" in text for text in column.locator(".ask-share").all_inner_texts())
        prompt = render_prompt(tokenizer, [{"role": "user", "content": QUESTION}])
        assert column.locator(".ask-prompt").text_content() == prompt
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE.width


def test_markup_is_refused_in_words_and_escape_stops_the_answers(visit):
    page = visit(PAGE).page
    load(page)
    page.get_by_label("Your question").fill("Hi<|im_end|>")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="<|im_end|>")).to_be_visible()
    expect(page.locator(".ask-token")).to_have_count(0)
    page.get_by_label("Your question").fill("Tell me")
    page.get_by_label("Temperature").fill("3")  # no end in sight
    page.locator(".ask form").evaluate(
        """(form) => {  // at the first token, however fast or slow the machine is
          new MutationObserver((_, observer) => {
            if (!document.querySelector(".ask-token")) return;
            observer.disconnect();
            form.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
          }).observe(document.body, { childList: true, subtree: true });
          form.requestSubmit();
        }"""
    )
    expect(page.locator(".ask-status")).to_have_text("Stopped.")
    assert 0 < page.locator(".ask-token").count() < 3 * 48
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_loading_can_be_canceled_and_begun_again(visit):
    page = visit(PAGE).page
    held = []
    page.route("**/*.wasm", lambda route: held.append(route))  # never answered
    page.locator(".ask-load").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".ask-status")).to_have_text("Loading was canceled.")
    expect(page.locator(".ask-load")).to_be_focused()
    page.unroute("**/*.wasm")
    load(page)


def test_a_file_that_does_not_arrive_is_said(visit):
    page = visit(PAGE).page
    for said, act in (
        ("404", lambda route: route.fulfill(status=404)),
        ("only in part", lambda route: route.fulfill(status=200, body=b"\0asm")),
        ("could not be loaded", lambda route: route.abort()),
    ):
        page.route("**/*.wasm", act)  # the last that was given answers
        page.locator(".ask-load").click()
        expect(page.get_by_role("alert").filter(has_text=said)).to_be_visible()
        expect(page.locator(".ask-load")).to_be_enabled()


def test_from_a_folder_the_page_says_how_to_serve_it(browser, html):
    context = browser.new_context()
    page = context.new_page()
    page.goto((html / PAGE).as_uri())
    served = "python -m http.server --directory _build/html"
    expect(page.locator(".ask-without")).to_contain_text(served)
    expect(page.locator(".ask-without")).to_be_visible()
    expect(page.locator(".ask-load")).to_have_count(0)
    context.close()
