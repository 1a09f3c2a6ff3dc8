"""The line that refuses a pickle makes a folder of it that is whole: it is run here, as it is printed."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.drawn import drawn_params
from tests.parity.sentences import SENTENCES
from tests.parity.test_parity import loaded
from transformer_jax.data.marian_tokenizer import load_marian_tokenizer
from transformer_jax.inference.defaults import RUN_DEFAULTS
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained
from transformer_jax.pretrained.tensor_files import PICKLES, SINGLE_FILE, WeightsError

pytestmark = pytest.mark.live


@pytest.fixture
def converted(single_device_environment):
    """The folder that the printed line makes of one whose weights are pickled."""

    def converted(folder):
        with pytest.raises(WeightsError) as error:
            from_pretrained(folder)
        line = re.search(r"installed: (python -c .*)$", str(error.value))[1]
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | single_device_environment | {"PATH": path, "HF_HUB_OFFLINE": "1"}
        subprocess.run(line, shell=True, check=True, env=environment, timeout=300)
        return f"{folder}-safetensors"

    return converted


def write_pickle(model, folder):
    import torch

    torch.save(model.state_dict(), folder / PICKLES[0])
    (folder / SINGLE_FILE).unlink(missing_ok=True)


def check_generates(folder, model, tokenizer):
    ours = from_pretrained(folder)
    # Of <unk>, load_marian_tokenizer says where it comes otherwise.
    texts = [text for text in SENTENCES if tokenizer.unk_token_id not in tokenizer(text).input_ids][:6]
    assert len(texts) == 6
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        made = model.generate(
            **inputs, max_new_tokens=8, do_sample=False, num_beams=1,
            bad_words_ids=[[tokenizer.pad_token_id]],
        )  # fmt: skip
        wanted = ours.tokenizer.decode(made[0, 1:].numpy())
        assert ours.tokenizer.encode_whole(text).tolist() == inputs.input_ids[0].tolist()
        assert ours.generate(text, max_new_tokens=8) == wanted


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_marian(tmp_path, transformers, converted):
    from tests.parity.make_marian import train

    folder = tmp_path / "marian"
    train(tmp_path / "pieces", rule="identity")
    pad_id = load_marian_tokenizer(tmp_path / "pieces").id_of("pad")
    ids = dict(vocab_size=pad_id + 1, pad_id=pad_id, decoder_start_id=pad_id)
    config = dataclasses.replace(loaded("marian").config, max_length=90, **ids)
    # Its generation_config.json names the tokens of the stored model.
    ours = dataclasses.replace(loaded("marian"), config=config, generation=RUN_DEFAULTS)
    params = drawn_params(config)
    save_pretrained(folder, dataclasses.replace(ours, params=jax.tree.map(lambda leaf: 3 * leaf, params)))
    shutil.copytree(tmp_path / "pieces", folder, dirs_exist_ok=True)
    model = transformers.MarianMTModel.from_pretrained(folder).eval()
    write_pickle(model, folder)
    (folder / "tokenizer_config.json").write_text('{"source_lang": "en", "target_lang": "de"}')
    check_generates(converted(folder), model, transformers.AutoTokenizer.from_pretrained(folder))


def test_t5(tmp_path, transformers, converted):
    """1.1, whose published folders have the pieces of SentencePiece and no tokenizer.json."""
    import sentencepiece
    import torch

    folder = tmp_path / "t5"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(folder / "spiece"), vocab_size=250,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, character_coverage=1.0,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    config = transformers.T5Config(
        vocab_size=350, d_model=16, d_kv=6, d_ff=28, num_layers=2, num_decoder_layers=1, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
        architectures=["T5ForConditionalGeneration"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    (folder / "config.json").write_text(published(config))
    write_pickle(model, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    check_generates(converted(folder), model, tokenizer)


def published(config):
    """As the published T5 1.1 have it: transformers 5 writes ``tie_word_embeddings`` otherwise."""
    content = config.to_dict() | {"tie_word_embeddings": False}
    content.pop("scale_decoder_outputs", None)
    return json.dumps(content)


def test_sentence_transformers(tmp_path, transformers, converted):
    from tests.parity import minilm

    folder = tmp_path / "minilm"
    shutil.copytree(minilm.folder(), folder)
    model = transformers.AutoModel.from_pretrained(folder)
    write_pickle(model, folder)
    found = from_pretrained(converted(folder)).embed(list(SENTENCES[:4]))
    np.testing.assert_allclose(found, minilm.our_embeddings(list(SENTENCES[:4])), atol=1e-6)
