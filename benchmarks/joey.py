"""Trains JoeyNMT by its own command on the text and tokenizer of a run, and translates with what validated best.

Its shape, schedule and updates are those of `marian.py`, as far as its configuration says them; its one dropout also
falls on attention weights and within the feed-forward network, and its length penalty is ((5 + n) / 6)^alpha.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from marian import Schedule
from trainers import GRADIENT_CLIP, LABEL_SMOOTHING

from mt.corpus.encoded import EncodedSide
from mt.corpus.tokenizer import Tokenizer
from mt.device import Compute
from mt.evaluation.metrics import choose_tokenizer, quick_scores
from mt.files import write_text
from mt.pipelines.prepare import PreparedRun
from mt.training.budget import Clock

OTHER_LENGTH_PENALTIES = (0.0, 0.6, 1.4, 1.8)  # than 1
SECONDS_TO_END = 120  # of the last update, and of writing its weights
LOG_EVERY_UPDATES = 5  # of which its interval between validations must be a multiple
# JoeyNMT counts padding and does not sort by length: half of what it counts are words.
COUNTED_TOKENS = 2
# SentencePiece no longer has what JoeyNMT calls to say which pieces there are: all of them, here.
# It ends by SIGINT, which a process that was started in the background of a shell ignores if nobody handles it.
PROGRAM = """
import runpy, sentencepiece, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
sentencepiece.SentencePieceProcessor.SetVocabulary = lambda processor, pieces: None
runpy.run_module("joeynmt", run_name="__main__", alter_sys=True)
"""
SPECIALS = ("<unk>", "<pad>", "<s>", "</s>")  # which JoeyNMT puts before all others


class JoeyTraining:
    """What `MarianTraining` is for Marian, by commands of JoeyNMT in a folder that goes with it."""

    def __init__(self, prepared: PreparedRun, compute: Compute, schedule: Schedule, clock: Clock) -> None:
        self.prepared, self.compute, self.schedule, self.clock = prepared, compute, schedule, clock
        self.length_penalty = 1.0  # of beam search
        self.weights = "best.ckpt"  # or "latest.ckpt"
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.write_texts()

    def write_texts(self) -> None:
        """The text as its tokenizer reads it, and the tokenizer."""
        data, (tokenizer, _) = self.prepared.data, self.prepared.tokenizers
        (self.folder / "tokenizer.model").write_bytes(tokenizer.model)
        pieces = [piece for piece in tokenizer.pieces(range(tokenizer.size)) if piece not in SPECIALS]
        write_text(self.folder / "vocabulary", "".join(f"{piece}\n" for piece in pieces))
        texts = {
            "train.source": decoded(data.train.source, tokenizer),
            "train.target": decoded(data.train.target, tokenizer),
            "valid.source": data.valid_sources,
            "valid.target": data.valid_references,
        }
        for name, lines in texts.items():
            write_text(self.folder / name, "".join(f"{line}\n" for line in lines))

    def fit(self) -> None:
        """Train until the minutes are used up; JoeyNMT keeps the weights that validated best, and the last ones."""
        process = self.start("train", "--skip-test")
        try:
            while self.clock.elapsed() < self.schedule.minutes * 60:
                if process.poll() is not None:
                    sys.exit(
                        f"error: JoeyNMT has ended before its minutes were used up, with code {process.returncode}"
                    )
                time.sleep(1)
            process.send_signal(signal.SIGINT)
            process.wait(SECONDS_TO_END)
        finally:
            process.kill()
        self.seconds = self.clock.elapsed()
        if not (self.folder / "model" / "best.ckpt").exists():
            sys.exit("error: the minutes were used up before JoeyNMT's first validation: give more")

    def start(self, *words: str, **options: Any) -> "subprocess.Popen[str]":
        """A command of JoeyNMT with the settings as they stand."""
        path = self.folder / "settings.yaml"
        write_text(path, json.dumps(self.configuration()))  # which is YAML, too
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.prepared.config.training.threads),
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # its checkpoints hold more than tensors
        }
        command = [sys.executable, "-c", PROGRAM, words[0], str(path), *words[1:]]
        return subprocess.Popen(command, env=environment, encoding="utf-8", **options)

    def configuration(self) -> dict[str, Any]:
        config, schedule, weights = self.prepared.config, self.schedule, self.folder / "model" / self.weights
        return {
            "name": "benchmark",
            "model_dir": str(self.folder / "model"),
            "use_cuda": self.compute.on_cuda,
            "random_seed": schedule.seed,
            "data": {
                "train": str(self.folder / "train"),
                "dev": str(self.folder / "valid"),
                "dataset_type": "plain",
                "src": self.side("source"),
                "trg": self.side("target"),
            },
            "model": {
                "initializer": "xavier_uniform",
                "embed_initializer": "xavier_uniform",
                "tied_embeddings": True,
                "tied_softmax": True,
                "encoder": self.stack(config.model.encoder_layers),
                "decoder": self.stack(config.model.decoder_layers),
            },
            "training": {
                "optimizer": "adam",
                "adam_betas": [0.9, 0.98],
                "normalization": "tokens",
                "scheduling": "warmupinversesquareroot",
                "learning_rate": schedule.peak_learning_rate,
                "learning_rate_warmup": schedule.warmup_updates,
                "learning_rate_min": 0.0,  # which it would otherwise not go below, and end at
                "clip_grad_norm": GRADIENT_CLIP,
                "label_smoothing": LABEL_SMOOTHING,
                "batch_type": "token",
                "batch_size": COUNTED_TOKENS * config.data.batch_tokens,
                "epochs": 10_000,
                "validation_freq": schedule.validate_every_updates,
                "logging_freq": LOG_EVERY_UPDATES,
                "early_stopping_metric": "bleu",
                "keep_best_ckpts": 1,
                "print_valid_sents": [0],
            },
            "testing": {
                "beam_size": 5,
                "beam_alpha": self.length_penalty,
                "batch_type": "token",
                "batch_size": 4_096,
                "eval_metrics": ["bleu"],
                "sacrebleu_cfg": {"tokenize": "13a"},
            }
            | ({"load_model": str(weights)} if weights.exists() else {}),
        }

    def side(self, language: str) -> dict[str, Any]:
        return {
            "lang": language,
            "level": "bpe",
            "tokenizer_type": "sentencepiece",
            "tokenizer_cfg": {"model_file": str(self.folder / "tokenizer.model")},
            "voc_file": str(self.folder / "vocabulary"),
        }

    def stack(self, layers: int) -> dict[str, Any]:
        model = self.prepared.config.model
        return {
            "type": "transformer",
            "num_layers": layers,
            "num_heads": model.heads,
            "embeddings": {"embedding_dim": model.width, "scale": True, "dropout": model.dropout},
            "hidden_size": model.width,
            "ff_size": model.feed_forward,
            "dropout": model.dropout,
            "layer_norm": "pre",
        }

    def choose_length_penalty(self, *, beam: int) -> None:
        """As `MarianTraining` does, after the last weights have taken the place of the best where they are better."""
        of_weights = {}
        for self.weights in ("best.ckpt", "latest.ckpt"):
            of_weights[self.weights] = self.validation_bleu(beam=beam)
        self.weights = max(of_weights, key=lambda weights: of_weights[weights])
        of_penalties = {self.length_penalty: of_weights[self.weights]}
        for self.length_penalty in OTHER_LENGTH_PENALTIES:
            of_penalties[self.length_penalty] = self.validation_bleu(beam=beam)
        self.length_penalty = max(of_penalties, key=lambda penalty: of_penalties[penalty])

    def validation_bleu(self, *, beam: int) -> float:
        data, language = self.prepared.data, self.prepared.config.data.target_language
        translations = self.translate(data.valid_sources, beam=beam)
        bleu = quick_scores(translations, data.valid_references, choose_tokenizer(language, None))["bleu"]
        print(f"{self.weights}, length penalty {self.length_penalty}: BLEU {bleu:.2f}", file=sys.stderr)
        return bleu

    def translate(self, lines: list[str], *, beam: int) -> list[str]:
        """By the weights that were chosen; the beam is that of the configuration.

        JoeyNMT makes batches of lines as they come: it gets them by their length.
        """
        assert beam == self.configuration()["testing"]["beam_size"]
        order = sorted(range(len(lines)), key=lambda i: len(lines[i]))
        process = self.start("translate", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        printed, _ = process.communicate("".join(f"{lines[i]}\n" for i in order))
        translations = printed.removesuffix("\n").split("\n")
        if process.returncode or len(translations) != len(lines):
            made = f"{len(translations)} translations of {len(lines)} lines"
            sys.exit(f"error: JoeyNMT has ended with code {process.returncode}, after {made}")
        return [translation for _, translation in sorted(zip(order, translations, strict=True))]

    def settings(self) -> dict[str, Any]:
        said = self.configuration()
        said["testing"].pop("load_model", None)  # a temporary file: `weights` says which
        return {name: said[name] for name in ("model", "training", "testing")} | {
            "minutes": self.schedule.minutes,
            "seed": self.schedule.seed,
            "weights": self.weights,
            "length_penalty": self.length_penalty,
            "precision": "fp32",
            "threads": self.prepared.config.training.threads,
        }

    def figures(self) -> dict[str, Any]:
        """What its logs say, under the names that `train.py` has for a run of mt."""
        log = (self.folder / "model" / "train.log").read_text(encoding="utf-8")
        steps = re.findall(r"Step: +(\d+),.*Tokens per Sec: +(\d+)", log)
        report = (self.folder / "model" / "validations.txt").read_text(encoding="utf-8")
        [parameters] = set(re.findall(r"Total params: (\d+)", log))
        return {
            "steps": int(steps[-1][0]),
            "minutes": round(self.seconds / 60, 2),
            "parameters": int(parameters),
            "target_tokens_per_second_median": statistics.median(int(rate) for _, rate in steps),
            "validation": [
                {"step": int(step), "smoothed_loss": float(loss), "bleu": float(bleu)}
                for step, loss, bleu in re.findall(r"Steps: (\d+)\tloss: ([\d.]+).*?bleu: ([\d.]+)", report)
            ],
        }


def decoded(side: EncodedSide, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(side[i].tolist()) for i in range(len(side))]
