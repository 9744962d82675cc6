"""Whether teacher and student read the same, how many tokens a teacher takes, and logits brought to other tokens."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    CLIPConfig,
    CLIPForImageClassification,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_distill.data.processors import (
    _FIXED_IMAGE_SIZE,
    _POSITIONS_AFTER_PADDING,
    check_same_inputs,
    difference,
    load_processor,
    max_tokens,
    select_positions,
)

TEXTS = ["The film was GOOD and the Plot is dull", "a very Funny film, not bad! 123", "short long sad Great fine poor"]


def byte_level(**options: Any) -> RobertaTokenizer:
    """Return a cased tokenizer of bytes, as RoBERTa's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 5, trainer)
    merges = [line.split() for line in _merges(backend)]
    return RobertaTokenizer(
        vocab=backend.get_vocab(), merges=[tuple(pair) for pair in merges], add_prefix_space=True, **options
    )


def _merges(backend: Tokenizer) -> list[str]:
    _, merges = backend.model.save(".")
    return Path(merges).read_text(encoding="utf-8").splitlines()[1:]


def word_pieces(words: list[str], *, lower: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    if lower:
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def image_processor(size: int | tuple[int, int] = 8, **options: Any) -> ViTImageProcessorPil:
    height, width = (size, size) if isinstance(size, int) else size
    return ViTImageProcessorPil(size={"height": height, "width": width}, **options)


class TestTokenizersThatReadAlike:
    def test_a_copy_reads_alike(self):
        """Every teacher refused, because two objects are never the same."""
        assert difference(tiny.tokenizer(), tiny.tokenizer()) is None
        assert difference(byte_level(), byte_level()) is None
        same = tiny.tokenizer()
        assert difference(same, same) is None

    def test_another_class_with_the_same_vocabulary_reads_alike(self, tmp_path):
        """DistilBERT refused beside BERT, by the name of its tokenizer or by the inputs that it leaves out."""
        vocabulary = {word: i for i, word in enumerate(tiny.VOCABULARY)}
        bert = BertTokenizerFast(vocab=vocabulary, do_lower_case=True)
        bert.save_pretrained(tmp_path)
        other = PreTrainedTokenizerFast.from_pretrained(tmp_path)
        other.model_input_names = ["input_ids", "attention_mask"]
        assert type(other) is not type(bert)
        assert difference(bert, other) is None

    def test_padding_side_and_length_are_no_difference(self):
        """They change where the padding is, and not what is read."""
        other = tiny.tokenizer()
        other.padding_side, other.truncation_side, other.model_max_length = "left", "left", 7
        assert difference(tiny.tokenizer(), other) is None

    def test_a_teacher_may_know_more_tokens(self):
        """A teacher with a token of its own added would never be able to teach."""
        teacher = tiny.tokenizer()
        teacher.add_tokens(["zebra", "[EXTRA]"])
        assert len(teacher) == len(tiny.tokenizer()) + 2
        assert difference(tiny.tokenizer(), teacher) is None
        assert "'zebra" in str(difference(teacher, tiny.tokenizer()))


class TestTokenizersThatDiffer:
    def test_another_vocabulary(self):
        """The student's ids mean other words to the teacher, and every one of them is in its range."""
        found = difference(tiny.tokenizer(), byte_level())
        assert found is not None
        assert "the student's tokenizer reads" in found
        assert "the teacher's '<s>" in found

    def test_the_order_of_the_vocabulary(self):
        """Words that no fixed text happens to hold have changed places: seen in no shape, and in no range."""
        swapped = [*tiny.VOCABULARY, "zyzzyva", "quokka"]
        other = [*tiny.VOCABULARY, "quokka", "zyzzyva"]
        found = difference(word_pieces(swapped), word_pieces(other))
        assert found is not None
        assert "27" in found
        assert "28" in found

    def test_a_token_that_no_text_can_hold_has_another_id(self):
        """Ids are compared even where no text shows them: a special token sits where the teacher has another."""
        student, teacher = (word_pieces([*tiny.VOCABULARY, *more]) for more in (["##q", "##z"], ["##z", "##q"]))
        found = difference(student, teacher)
        assert found is not None
        assert "2 of the 29 tokens of the student's tokenizer differ: '##q' has the id 27, in the teacher's" in found

    def test_a_word_that_is_in_no_fixed_text_is_read_in_another_way(self):
        """The same ids, and a tokenizer that splits or replaces words which the fixed texts do not hold."""
        words = [*tiny.VOCABULARY, "quokka", "zyzzyva"]
        other = word_pieces(words)
        other.backend_tokenizer.normalizer = normalizers.Replace("zyzzyva", "quokka")
        found = difference(word_pieces(words), other)
        assert found is not None
        assert "reads 'zyzzyva' (ids 28), the teacher's 'quokka' (ids 27)" in found

    def test_a_special_token_that_the_teacher_lacks(self):
        """An id beyond the teacher's embeddings, in the rows that hold the token."""
        student = tiny.tokenizer()
        student.add_special_tokens({"additional_special_tokens": ["<user>"]})
        found = difference(student, tiny.tokenizer())
        assert found is not None
        assert "'<user>' has the id 27, in the teacher's no such token" in found

    def test_casing(self):
        """The same vocabulary in the same order, and a teacher that sees [UNK] for every capital."""
        found = difference(word_pieces(tiny.VOCABULARY, lower=True), word_pieces(tiny.VOCABULARY))
        assert found is not None
        assert "The Quick brown FOX" in found
        assert "reads 'the [UNK]" in found
        assert "the teacher's '[UNK] [UNK]" in found

    def test_special_tokens(self):
        """A teacher that was trained with [CLS] and [SEP], and gets texts without."""
        found = difference(word_pieces(tiny.VOCABULARY), tiny.tokenizer())
        assert found is not None
        assert "from token 0 on" in found

    def test_the_padding_token(self):
        """GPT-2 reads the last token before padding, which it finds by the id of its own padding token."""
        other = tiny.tokenizer()
        other.pad_token = "[MASK]"
        found = difference(tiny.tokenizer(), other)
        assert found is not None
        assert "pads with '[PAD]' (id 0), the teacher's with '[MASK]' (id 4)" in found
        other.pad_token = None
        assert difference(tiny.tokenizer(), other) is None


class TestImageProcessors:
    def test_equal_settings_read_alike(self):
        """Every vision teacher refused."""
        assert difference(image_processor(), image_processor()) is None

    def test_another_size_is_a_difference_of_both_sizes(self):
        """A ResNet takes any size, and does badly at most of them without a word."""
        found = difference(image_processor(8), image_processor((12, 16)))
        assert found is not None
        assert "images of 3 x 8 x 8 " in found
        assert "of 3 x 12 x 16 " in found

    def test_another_normalisation_is_a_difference_of_both(self):
        """The same shape and other numbers: nothing fails, and the teacher sees grey fog."""
        imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        found = difference(image_processor(), image_processor(**imagenet))
        assert found is not None
        assert "mean [0.5, 0.5, 0.5]" in found
        assert "standard deviation [0.229, 0.224, 0.225]" in found

    def test_a_setting_that_is_neither_is_named(self):
        """Size and normalisation of both are equal, and the message gives no clue."""
        found = difference(image_processor(), image_processor(do_rescale=False))
        assert found is not None
        assert "do_rescale is True and False" in found

    def test_grey_and_colour_differ(self):
        """An error from inside a processor that was given the wrong number of channels."""
        grey = image_processor(image_mean=[0.5], image_std=[0.5])
        assert difference(grey, image_processor(image_mean=[0.5], image_std=[0.5])) is None
        found = difference(grey, image_processor())
        assert found is not None
        assert "1 x 8 x 8" in found

    def test_a_tokenizer_is_not_an_image_processor(self):
        """An AttributeError in the middle of a comparison."""
        found = difference(tiny.tokenizer(), image_processor())
        assert found is not None
        assert "a tokenizer" in found
        assert "an image processor" in found

    def test_what_is_neither_is_refused(self):
        """A model passed in the place of its tokenizer."""
        with pytest.raises(ValueError, match="is a tokenizer or an image processor, got BertForSequenceClassification"):
            difference(tiny.tokenizer(), tiny.bert())


def saved(folder: Path, *parts: Any) -> str:
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


class TestLoading:
    def test_the_tokenizer_beside_a_text_model_is_found(self, tmp_path):
        """The image processor asked for, and nothing found."""
        processor = load_processor(saved(tmp_path, tiny.bert(), tiny.tokenizer()))
        assert difference(processor, tiny.tokenizer()) is None

    def test_the_image_processor_beside_a_vision_model_is_found(self, tmp_path):
        """A tokenizer asked for, and nothing found."""
        processor = load_processor(saved(tmp_path, tiny.vit(), image_processor(12)))
        assert difference(processor, image_processor(12)) is None

    @pytest.mark.parametrize("make", [tiny.tokenizer, image_processor])
    def test_a_folder_of_a_processor_alone_will_do(self, tmp_path, make):
        """A user keeps the processor apart from the model."""
        processor = load_processor(saved(tmp_path, make()))
        assert difference(processor, make()) is None

    @pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2", "t5", "deberta-v2", "llama", "esm", "vit"])
    def test_a_folder_of_a_model_alone_has_none(self, tmp_path, model_type):
        """AutoTokenizer makes a tokenizer without a single word there, and every teacher would be refused."""
        AutoConfig.for_model(model_type).save_pretrained(tmp_path)
        assert load_processor(str(tmp_path)) is None

    @pytest.mark.parametrize("source", ["no/such", "/no/such/folder", "a b c"])
    def test_a_source_that_is_not_there_has_none(self, source):
        """The teacher has moved since, or the network is down: no reason to stop."""
        assert load_processor(source) is None


class TestRefusing:
    def test_a_teacher_that_reads_alike_passes(self, tmp_path):
        """A check that refuses what works."""
        check_same_inputs(tiny.bert(), tiny.tokenizer(), saved(tmp_path, tiny.bert(), tiny.tokenizer()))

    def test_a_teacher_with_another_tokenizer_is_refused_with_its_name(self, tmp_path):
        """Ids in range, shapes alike, and soft targets for other texts."""
        source = saved(tmp_path, tiny.bert(), byte_level())
        with pytest.raises(ValueError, match="does not read the student's inputs") as caught:
            check_same_inputs(tiny.bert(vocab_size=400), tiny.tokenizer(), source)
        assert f"teacher_processing_class={source!r}" in str(caught.value)
        assert "the student's tokenizer reads" in str(caught.value)

    def test_a_model_object_remembers_where_it_came_from(self, tmp_path):
        """Only teachers given by name are checked."""
        saved(tmp_path, tiny.vit(), image_processor(12))
        teacher = AutoModelForImageClassification.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="3 x 12 x 12"):
            check_same_inputs(teacher, image_processor(8))
        check_same_inputs(teacher, image_processor(12))

    def test_an_unknown_processor_of_the_student_is_no_mistake(self, tmp_path):
        """Data prepared by hand come with no processor at all."""
        check_same_inputs(tiny.bert(), None, saved(tmp_path, tiny.bert(), byte_level()))
        check_same_inputs(torch.nn.Linear(2, 2), tiny.tokenizer())
        check_same_inputs(torch.nn.Linear(2, 2), image_processor())

    def test_a_tokenizer_with_more_ids_than_the_teacher_has_embeddings(self):
        """An index out of range on some later row, or on a GPU an assertion that names no cause."""
        check_same_inputs(tiny.bert(), tiny.tokenizer())
        with pytest.raises(
            ValueError, match=r"ids up to 26, the teacher embeddings up to 25.*teacher_processing_class"
        ):
            check_same_inputs(tiny.bert(vocab_size=26), tiny.tokenizer())

    def test_a_processor_that_is_known_is_believed_before_the_config(self, tmp_path):
        """A config can only guess at what the teacher's own processor states."""
        source = saved(tmp_path, tiny.vit(), image_processor(12))
        check_same_inputs(tiny.vit(), image_processor(12), source)
        with pytest.raises(ValueError, match="3 x 12 x 12"):
            check_same_inputs(tiny.vit(), image_processor(8), source)

    def test_a_size_that_fixed_positions_do_not_take(self):
        """An error from the middle of the model, after the data were prepared."""
        check_same_inputs(tiny.vit(), image_processor(8))
        with pytest.raises(ValueError, match="12 x 8 pixels, the teacher takes 8 x 8"):
            check_same_inputs(tiny.vit(), image_processor((12, 8)))
        oblong = tiny.vit()
        oblong.config.image_size = (12, 8)
        check_same_inputs(oblong, image_processor((12, 8)))

    def test_a_size_in_a_part_of_the_config_counts_too(self):
        """CLIP keeps the shape of its images in vision_config."""
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = CLIPConfig(vision_config={**shape, "image_size": 8, "patch_size": 4}, text_config=shape)
        teacher = CLIPForImageClassification(config)
        check_same_inputs(teacher, image_processor(8))
        with pytest.raises(ValueError, match="12 x 12 pixels, the teacher takes 8 x 8"):
            check_same_inputs(teacher, image_processor(12))

    @pytest.mark.parametrize("make", [tiny.convnext, tiny.resnet])
    def test_models_that_take_any_size_are_not_refused_for_it(self, make):
        """ConvNext's config has an image_size, and nothing in the model depends on it."""
        check_same_inputs(make(), image_processor(24))

    @pytest.mark.parametrize("make", [tiny.convnext, tiny.resnet, tiny.vit])
    def test_another_number_of_channels(self, make):
        """Grey images for a teacher of colour."""
        with pytest.raises(ValueError, match="images of 1 channels, the teacher takes 3"):
            check_same_inputs(make(), image_processor(image_mean=[0.5], image_std=[0.5]))
        check_same_inputs(make(num_channels=1), image_processor(image_mean=[0.5], image_std=[0.5]))


# ---- Image size ----

SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
IMAGE_SHAPES: dict[str, dict[str, Any]] = {
    "vit": SMALL,
    "deit": {**SMALL, "architectures": ["DeiTForImageClassification"]},
    "ijepa": SMALL,
    "vit_msn": SMALL,
    "hf_distill_mlp": {"num_channels": 3, "hidden_sizes": [4]},
    "beit": SMALL,
    "dinov2": SMALL,
    "swinv2": {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4},
    "mobilevit": {"image_size": 32},
    "hiera": {},
    "levit": {"architectures": ["LevitForImageClassification"]},
    "pvt": {},
    "focalnet": {},
}


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=[] if shape else pytest.mark.slow) for name, shape in IMAGE_SHAPES.items()]
)
def test_the_sizes_that_are_refused_are_those_that_fail(model_type):
    """A list from memory: a good teacher refused, or one passed that stops the run."""
    config = AutoConfig.for_model(model_type, **IMAGE_SHAPES[model_type])
    model = AutoModelForImageClassification.from_config(config).eval()
    size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    usual, other = (torch.zeros(1, 3, pixels, pixels) for pixels in (size, size * 3 // 2))
    with torch.no_grad():
        model(pixel_values=usual)
        check_same_inputs(model, image_processor(size))
        if model_type not in _FIXED_IMAGE_SIZE:
            model(pixel_values=other)
            check_same_inputs(model, image_processor(size * 3 // 2))
            return
        with pytest.raises((ValueError, RuntimeError)):
            model(pixel_values=other)
    with pytest.raises(ValueError, match="pixels, the teacher takes"):
        check_same_inputs(model, image_processor(size * 3 // 2))


# ---- Token limit ----

TEXT_SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
MORE: dict[str, dict[str, Any]] = {
    "longformer": {"attention_window": [4]},
    "xmod": {"default_language": "en_XX"},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "albert": {"embedding_size": 8},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "distilbert": {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2},
}
MORE["bart"] = {"d_model": 16} | {
    f"{part}_{name}": value
    for part in ("encoder", "decoder")
    for name, value in {"layers": 1, "attention_heads": 2, "ffn_dim": 16}.items()
}
SHAPE_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
OTHER_NAMES = ("gpt2", "distilbert", "bart")  # these call their sizes otherwise
PLAIN = ["bert", "distilbert", "albert", "electra", "deberta", "deberta-v2", "mobilebert", "gpt2", "bart"]
RUNNABLE = sorted(_POSITIONS_AFTER_PADDING - {"layoutlmv3", "lilt"})  # these read the layout of a page too


def text_model(model_type: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    own = MORE.get(model_type, {})
    shape = {name: TEXT_SHAPE[name] for name in TEXT_SHAPE if name not in SHAPE_NAMES or model_type not in OTHER_NAMES}
    config = AutoConfig.for_model(model_type, **{**shape, **own, **changes})
    return AutoModelForSequenceClassification.from_config(config).eval()


def run_tokens(model: Any, count: int) -> None:
    ids = torch.full((1, count), 5)
    ids[0, -1] = 2
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


class TestTokenLimit:
    @pytest.mark.parametrize("model_type", [*RUNNABLE, *PLAIN])
    def test_the_stated_number_of_tokens_runs_and_one_more_fails(self, model_type):
        """RoBERTa loses positions to its padding: 512 tokens, as the config seems to say, stop the run."""
        model = text_model(model_type)
        limit = max_tokens(model.config, None)
        assert limit == (22 if model_type in _POSITIONS_AFTER_PADDING else 24)
        run_tokens(model, limit)
        with pytest.raises((IndexError, RuntimeError)):
            run_tokens(model, limit + 1)

    @pytest.mark.parametrize(
        ("model_type", "padding", "limit"), [("roberta", 3, 20), ("roberta", 0, 23), ("mpnet", 3, 22)]
    )
    def test_the_padding_token_moves_the_limit(self, model_type, padding, limit):
        """The usual 2 written into the code, for models whose padding token is another one."""
        model = text_model(model_type, pad_token_id=padding)
        assert max_tokens(model.config, None) == limit
        run_tokens(model, limit)
        with pytest.raises((IndexError, RuntimeError)):
            run_tokens(model, limit + 1)

    def test_the_tokenizer_may_set_the_lower_limit(self):
        """What the teacher was trained on, rather than what it has room for."""
        tokenizer = tiny.tokenizer()
        assert max_tokens(tiny.bert().config, tokenizer) == 32
        tokenizer.model_max_length = 16
        assert max_tokens(tiny.bert().config, tokenizer) == 16
        tokenizer.model_max_length = 40
        assert max_tokens(tiny.bert().config, tokenizer) == 32

    def test_a_tokenizer_without_a_limit_sets_none(self):
        """Its limit is a number of 30 digits, too large for a tensor."""
        tokenizer = word_pieces(tiny.VOCABULARY)
        assert tokenizer.model_max_length > 10**9
        assert max_tokens(tiny.bert().config, tokenizer) == 32
        assert max_tokens(AutoConfig.for_model("t5"), tokenizer) is None
        assert max_tokens(AutoConfig.for_model("xlnet"), tokenizer) is None


class TestSelectPositions:
    def test_logits_are_taken_to_their_tokens(self):
        """Rows mixed, or the labels gathered in the place of the tokens."""
        logits = torch.arange(2 * 4 * 3, dtype=torch.float32).reshape(2, 4, 3)
        positions = torch.tensor([[-1, 2, 0, -1, 3], [1, 1, -1, -1, 0]])
        selected, mask = select_positions(logits, positions)
        assert mask.tolist() == [[False, True, True, False, True], [True, True, False, False, True]]
        expected = torch.zeros(2, 5, 3)
        for row in range(2):
            for token in range(5):
                if positions[row, token] >= 0:
                    expected[row, token] = logits[row, positions[row, token]]
        assert torch.equal(selected, expected)

    def test_what_is_not_taken_is_zero_even_beside_infinity(self):
        """Minus infinity at the first token times a mask of 0 is NaN."""
        logits = torch.full((1, 2, 3), -torch.inf)
        selected, mask = select_positions(logits, torch.tensor([[-1, -1]]))
        assert torch.equal(selected, torch.zeros(1, 2, 3))
        assert not mask.any()
