"""What pages do on the Atlas alone, and how much of it they ask other models. Chapters 03 to 13."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..experiment import has_dev_questions
from ..profiles import load_profile
from .questions import Question, scored_questions
from .world import load_world

if TYPE_CHECKING:
    from ..profiles import Profile

#: How many of the Atlas's facts a model is asked for that was not made here: minutes for 0.6 B on a
#: processor.
FACTS_ASKED = 48


def atlas_only(profile: Profile) -> bool:
    """True on the Atlas's data; otherwise print that a part is left out, and return False."""
    if has_dev_questions(profile):
        return True
    print(f"This part needs the Atlas; the profile {profile.name} has none.")
    return False


def as_shipped(profile: Profile, *tables: str) -> bool:
    """True where the profile agrees with the shipped ``atlas``, in ``tables`` or in all that count.

    What a page claims of the Atlas was found with these models, rows and settings. With an adapter,
    another learning rate or another base there may be nothing wrong, and the claim still fail.
    """
    shipped = load_profile("atlas")
    named = tables or ("models", "data", "prompt", "sft", "lora")
    return all(getattr(profile, table) == getattr(shipped, table) for table in named)


def on_record(profile: Profile) -> bool:
    """True where the profile is the shipped one; otherwise print that a part is left out.

    A record of other models, rows or arguments than the profile's would be refused.
    """
    if as_shipped(profile):
        return True
    print("The runs on record are of the shipped profile, with its models, rows and arguments.")
    print(f"With those of the profile {profile.name} this part is left out.")
    return False


def facts_to_ask(profile: Profile) -> int | None:
    """How many of the Atlas's facts pages ask for: all (None) on its data, elsewhere a part.

    The facts are true, so any model that reads English can be asked. What it has read of them, in
    which words, is known of the Atlas's models only. Chapters 03, 04 and 08.
    """
    return None if has_dev_questions(profile) else FACTS_ASKED


def number_to_ask(profile: Profile) -> int:
    """The same as a number: all questions of the split ``headline-test``, elsewhere a part."""
    return facts_to_ask(profile) or len(scored_questions("headline-test", load_world()))


def atlas_questions(profile: Profile) -> list[Question]:
    """The profile's printed questions as scored questions of the split ``headline-test``.

    Empty for a profile without the Atlas's data. Raises ``ValueError`` for a question that is
    not in the split: it could not be scored.
    """
    if not has_dev_questions(profile):
        return []
    known = {q.text: q for q in scored_questions("headline-test", load_world())}
    missing = [q.text for q in profile.questions if q.text not in known]
    if missing:
        raise ValueError(
            f"{missing[0]!r} in the profile {profile.name} is not in the split headline-test. "
            "Take the question from sft_utils.atlas.questions.scored_questions('headline-test')."
        )
    return [known[q.text] for q in profile.questions]
