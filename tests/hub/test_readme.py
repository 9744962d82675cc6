"""A card in a README that is somebody's own: what is theirs stays."""

import re

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import RepoCard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_distill.hub.readme import BEGIN, END, combined, merge, our_section, users_license


def card(text: str = "# A student\n\nIts results.\n", *, accuracy: float = 0.9, **metadata) -> ModelCard:
    """Make a card as `model_card` does, with other metadata where they are given."""
    result = EvalResult("text-classification", "a/data", "a/data", "accuracy", accuracy, dataset_split="test")
    data = {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": ["a/teacher"],
        "datasets": ["a/data"],
        "metrics": ["accuracy", "f1"],
        "tags": ["knowledge-distillation", "distillation"],
        "model_name": "student",
        "eval_results": [result],
        **metadata,
    }
    made = ModelCard(f"---\nx: 1\n---\n\n{text}")
    made.data = ModelCardData(**data)
    return made


def metadata(readme: str) -> dict:
    return vars(RepoCard(readme.removeprefix("\ufeff")).data)


def outside(readme: str) -> tuple[str, str]:
    """Return what stands before and after our section."""
    before, _, rest = readme.rpartition(f"{BEGIN}")
    return before, rest.partition(END)[2]


USERS = """---
# chosen with care
license: mit   # ours
language: no
tags: [mine, distillation]
widget:
- text: "Hi: you"
---

# My model

Text with ---

---

and a rule.


"""


class TestText:
    def test_a_new_readme_has_metadata_and_one_section(self):
        """A card without marks would be appended a second time at the next push."""
        readme = merge(None, card())
        assert readme.startswith("---\n")
        assert readme.count(BEGIN) == readme.count(END) == 1
        assert "# A student" in our_section(readme)
        assert metadata(readme)["license"] == "apache-2.0"
        assert merge("", card()) == readme

    def test_a_readme_without_marks_gets_the_section_at_its_end(self):
        """A user's text that is lost, or that moves below ours."""
        readme = merge("# Mine\n\nText.", card())
        assert readme.index("# Mine\n\nText.\n\n") < readme.index(BEGIN)
        assert readme.endswith(f"{END}\n")

    def test_between_marks_only_our_section_is_replaced(self):
        """Text below the section that an update swallows."""
        first = merge("Above.\n", card("# Old\n")) + "\nBelow.\n"
        second = merge(first, card("# New\n"))
        assert outside(second) == outside(first)
        assert "# New" in second
        assert "# Old" not in second

    @pytest.mark.parametrize(
        "existing",
        [
            USERS,
            USERS.replace("\n", "\r\n"),
            "\ufeff" + USERS,
            "\ufeff# No metadata\r\n",
            "# Only text, no line break at the end",
            "---\n\n---\n",
            "---\nlicense: mit\n---",
            "\n---\ntitle: led by a blank line\n---\nthe user's words",
            "text\n---\nkey: not metadata\n---\n",
            "<!-- hf_distill:begin --> in a sentence, and `<!-- hf_distill:end -->` too\n",
            "mixed\r\nends\nhere\r",
        ],
    )
    def test_ten_pushes_leave_the_users_text_as_it_was(self, existing):
        """A line break, a byte order mark or a blank line that is gained or lost at each push."""
        text = existing.removeprefix("\ufeff")
        match = re.match(r"\s*---\r?\n.*?\r?\n---(\r?\n|$)", text, re.DOTALL)
        body = text[match.end() :] if match else text
        readme = merge(existing, card())
        assert readme.startswith("\ufeff") == existing.startswith("\ufeff")
        assert merge(readme, card()) == readme
        for push in range(10):
            readme = merge(readme, card(f"# Push {push}\n", accuracy=push / 10))
            before, after = outside(readme)
            assert before.count(body) == 1 or not body
            assert after.strip() == ""
            assert readme.count("# Push") == 1
        assert metadata(readme)["model-index"][0]["results"][-1]["metrics"] == [{"type": "accuracy", "value": 0.9}]

    def test_line_endings_are_those_of_the_file(self):
        """A README in which every line changes, or one with both kinds of line endings."""
        readme = merge(USERS.replace("\n", "\r\n"), card())
        assert readme.count("\n") == readme.count("\r\n")
        assert merge(readme, card()) == readme

    @settings(max_examples=150, deadline=None)
    @given(st.text(alphabet=st.sampled_from("ab# \n\r-:[]{}'\"&*!|>%\ufeff"), max_size=40))
    @example("---\n- a\n---\n")
    @example("--- \na: b\n---")
    def test_any_text_is_kept_or_refused_and_the_second_time_changes_nothing(self, existing):
        """An edge that nobody thought of."""
        try:
            readme = merge(existing, card())
        except ValueError as error:
            if not str(error).startswith("README.md: "):
                raise
            return
        assert merge(readme, card()) == readme
        assert metadata(readme)["pipeline_tag"] == "text-classification"

    @pytest.mark.parametrize(
        "marks",
        [
            [BEGIN],
            [END],
            [END, BEGIN],
            [BEGIN, END, BEGIN, END],
            [BEGIN, BEGIN, END, END],
            [BEGIN, BEGIN, END],
        ],
    )
    def test_broken_marks_are_refused_with_the_remedy(self, marks):
        """Text between two marks that do not belong together, replaced for good."""
        with pytest.raises(ValueError, match=r"README\.md: expected one line .* Leave one pair, or delete these lines"):
            merge("text\n" + "\nmine\n".join(marks) + "\n", card())

    @pytest.mark.parametrize("block", ["- a\n- b", "just words", "key: [unclosed", "1: x", "a: b: c"])
    def test_metadata_that_are_no_mapping_are_refused_with_the_remedy(self, block):
        """A list that becomes ours, and the user's entries with it lost."""
        with pytest.raises(ValueError, match=r"README\.md: the metadata .* cannot be read .*key: value"):
            merge(f"---\n{block}\n---\ntext\n", card())

    def test_it_is_accepted_by_the_hubs_own_reader(self):
        """A README that `ModelCard` reads in another way than it was meant."""
        readme = merge(USERS, card())
        loaded = ModelCard(readme)
        assert loaded.data.eval_results[0].metric_value == 0.9
        assert loaded.data.model_name == "student"


class TestMetadata:
    def test_what_the_user_wrote_wins(self):
        """A license that a push changes."""
        found = metadata(merge(USERS, card()))
        assert found["license"] == "mit"
        assert found["tags"] == ["mine", "distillation", "knowledge-distillation"]
        assert found["widget"] == [{"text": "Hi: you"}]
        assert found["datasets"] == ["a/data"]

    def test_what_an_earlier_card_of_ours_wrote_gives_way(self):
        """A teacher that was another one's, an old number beside the new one."""
        first = merge("---\nbase_model: mine/start\nmetrics: [wer]\n---\n", card(accuracy=0.8, base_model=["a/old"]))
        assert metadata(first)["base_model"] == ["mine/start", "a/old"]
        second = merge(first, card(accuracy=0.7, base_model=["a/new"], license="mit", datasets=None))
        found = metadata(second)
        assert found["base_model"] == ["mine/start", "a/new"]
        assert found["license"] == "mit"
        assert "datasets" not in found
        assert found["metrics"] == ["wer", "accuracy", "f1"]
        (model,) = found["model-index"]
        assert [metric["value"] for result in model["results"] for metric in result["metrics"]] == [0.7]

    def test_a_value_that_the_user_set_before_us_is_never_ours(self):
        """The user's license, which happened to be ours, changed when ours did."""
        first = merge("---\nlicense: apache-2.0\n---\n", card())
        assert metadata(merge(first, card(license="mit")))["license"] == "apache-2.0"

    def test_a_value_that_the_user_changed_is_theirs_from_then_on(self):
        """A correction that the next push takes back."""
        first = merge(None, card(license="mit"))
        changed = first.replace("license: mit", "license: gpl-3.0")
        for _ in range(3):
            changed = merge(changed, card(license="mit"))
        assert metadata(changed)["license"] == "gpl-3.0"

    def test_the_name_of_a_license_is_not_put_beside_another_license(self):
        """`license: mit` with the name and link of somebody's own terms."""
        own = {"license": "other", "license_name": "their-terms", "license_link": "https://x.example/terms"}
        assert metadata(merge(None, card(**own)))["license_name"] == "their-terms"
        found = metadata(merge("---\nlicense: mit\n---\n", card(**own)))
        assert "license_name" not in found
        assert "license_link" not in found

    def test_the_users_own_results_stay_beside_ours(self):
        """Results on other data that a push removes, or ours that pile up."""
        other = EvalResult("text-classification", "b/data", "b/data", "accuracy", 0.5)
        users = ModelCard("---\nx: 1\n---\n")
        users.data = ModelCardData(model_name="mine", eval_results=[other])
        readme = str(users)
        for value in (0.1, 0.2, 0.3):
            readme = merge(readme, card(accuracy=value))
        (model,) = metadata(readme)["model-index"]
        assert model["name"] == "mine"
        assert [result["metrics"][0]["value"] for result in model["results"]] == [0.5, 0.3]

    def test_results_that_the_hub_has_sorted_anew_are_known_again(self):
        """`metadata_update` and the Hub's forms write the same results in another shape."""
        readme = merge(None, card(accuracy=0.8))
        loaded = ModelCard(readme)
        loaded.data.eval_results[0].metric_name = "Accuracy, renamed"
        loaded.data.eval_results[0].verified = False
        again = merge(str(loaded), card(accuracy=0.7))
        (model,) = metadata(again)["model-index"]
        assert [metric["value"] for result in model["results"] for metric in result["metrics"]] == [0.7]

    def test_a_broken_model_index_is_refused(self):
        """A KeyError in the middle of a push."""
        with pytest.raises(ValueError, match=r"README\.md: model-index is not a list of models"):
            merge("---\nmodel-index:\n- nothing\n---\n", card())

    def test_without_our_record_everything_there_is_the_users(self):
        """A record that somebody has broken must not take the user's values with it."""
        broken = re.sub(r"hf_distill:metadata \{.", "hf_distill:metadata {{{", merge(None, card(license="mit")))
        assert metadata(merge(broken, card()))["license"] == "mit"

    def test_the_record_cannot_end_its_comment(self):
        """A tag with --> in it, and the rest of the record shown as text."""
        readme = merge(None, card(tags=["-->", "--"]))
        (line,) = [line for line in readme.splitlines() if "hf_distill:metadata" in line]
        assert line.count("-->") == 1
        assert merge(readme, card(tags=["-->", "--"])) == readme

    def test_the_license_is_the_users_only_if_they_set_it(self):
        """Our own guess, taken at the next push for what the user has said."""
        assert users_license(None) is None
        assert users_license(merge(None, card())) is None
        assert users_license(USERS) == "mit"
        assert users_license(merge(USERS, card())) == "mit"
        assert users_license("\ufeff---\nlicense: gpl-3.0\n---\n") == "gpl-3.0"
        assert users_license("---\nlicense: [mit, gpl-3.0]\n---\n") == "mit, gpl-3.0"


class TestCombined:
    @pytest.mark.parametrize(
        ("here", "there", "expected"),
        [
            (None, None, None),
            ("mine\n", None, "mine\n"),
            (None, "theirs\n", "theirs\n"),
            ("mine\n", "---\nlicense: mit\n---\n", "---\nlicense: mit\n---\nmine\n"),
            ("---\nlicense: mit\n---\n", "theirs\n", "---\nlicense: mit\n---\ntheirs\n"),
            ("same\r\ntext\r\n", "same\ntext\n", "same\ntext\n"),
            ("one\n\ntwo\n\nthree\n", "two\n\nfour\n", "two\n\nfour\n\none\n\nthree\n"),
            ("mine\n", "theirs\r\n\r\nmore\r\n", "theirs\r\n\r\nmore\r\n\r\nmine\r\n"),
            (f"The mark is `{BEGIN}`.\n", "theirs\n", f"theirs\n\nThe mark is `{BEGIN}`.\n"),
            ("---\ntags: [a]\nx: 1\n---\n", "---\ntags: [b]\nx: 2\n---\n", "---\ntags:\n- b\n- a\nx: 2\n---\n"),
        ],
    )
    def test_the_hubs_readme_gets_what_only_the_local_one_has(self, here, there, expected):
        """A text that is in neither outcome, or twice."""
        assert combined(there, here) == expected
        assert combined(expected, here) == expected

    def test_our_section_stays_where_it_is_on_the_hub(self):
        """A local paragraph inside of the section, where the next push deletes it."""
        there = merge("Above.\n", card()) + "\nBelow.\n"
        here = merge("Mine.\n", card("# Old\n"))
        found = combined(there, here)
        assert our_section(found) == our_section(there)
        assert found.endswith("\nBelow.\n\nMine.\n")
