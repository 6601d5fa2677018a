"""What several parts of the suite share: a headless renderer, calm OpenMP, and a small checkpoint made in seconds."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Before anything imports MuJoCo or torch; spawned servers inherit both.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jaxtyping import install_import_hook
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# Shapes and dtypes at tensor boundaries are checked here and free in production. Modules that validate their own input
# are left out, for their errors must be their own. Before any of them is imported.
_CHECKED = (
    "flow", "trunk", "prior", "backbone", "convolutional", "vlm_families", "vlm", "vla", "intent", "intent_vla",
)  # fmt: skip
install_import_hook([f"policy.{name}" for name in _CHECKED], "beartype.beartype")

from policy.checkpoint import write_checkpoint
from policy.config import ConvolutionalSettings, ModelConfig
from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind, Normalization
from policy.normalization import Statistics
from policy.policy import Policy
from policy.request import ChunkRequest
from policy.trunk import TrunkConfig
from policy.vla import VLA, build_vla
from policy.vlm_toy import toy_hugging_face
from policy.vocabulary import IMAGE_MARKERS, train_tokenizer


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Command lines that a test runs in this process choose their own number, which changes the last bits of sums."""
    torch.set_num_threads(1)


def num_shared_requests() -> int:
    """Files that hold requests of this process (service/triton/shared_requests.py), each once however often open."""
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return len({path.stat().st_ino for path in links if "premotor-request" in str(path.readlink())})


def toy_spec(
    name: str, *, state_dim: int, action_dim: int, cameras: Sequence[str], relative: bool = False
) -> EmbodimentSpec:
    return EmbodimentSpec(
        name=name,
        cameras=tuple(Camera(name=camera, height=32, width=32) for camera in cameras),
        state=(Group(name="joints", dim=state_dim, kind=GroupKind.JOINT_POSITION, unit="rad"),),
        action=(
            Group(
                name="joints",
                dim=action_dim,
                kind=GroupKind.JOINT_POSITION,
                unit="rad",
                normalization=Normalization.MIN_MAX,
                relative_to="joints" if relative else None,
            ),
        ),
        control_rate_hz=20.0,
    )


TOY_SPECS = (
    toy_spec("arm", state_dim=4, action_dim=3, cameras=("front", "wrist")),
    toy_spec("pair", state_dim=6, action_dim=6, cameras=("top",), relative=True),
)


def toy_statistics(spec: EmbodimentSpec) -> Statistics:
    def side(dim: int) -> dict[str, list[float]]:
        low, high = [-1.0 - 0.1 * i for i in range(dim)], [1.0 + 0.2 * i for i in range(dim)]
        return {
            "min": low, "max": high, "q01": low, "q99": high, "mean": [0.0] * dim, "std": [1.0] * dim,
        }  # fmt: skip

    return {"state": side(spec.state_dim), "action": side(spec.action_dim)}


def toy_config(specs: Sequence[EmbodimentSpec] = TOY_SPECS, vocabulary: int = 512) -> ModelConfig:
    trunk = TrunkConfig(width=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_width=64, rope_theta=1e4)
    return ModelConfig(
        size="toy",
        num_embodiments=len(specs),
        max_cameras=max(len(spec.cameras) for spec in specs),
        max_state_dim=max(spec.state_dim for spec in specs),
        max_action_dim=max(spec.action_dim for spec in specs),
        image_size=32,
        interpolation="bilinear",
        action_horizon=4,
        execution_horizon=2,
        history_steps=3,
        num_inference_steps=2,
        max_inference_steps=8,
        noise_scale=1.0,
        latent_dim=16,
        num_soft_tokens=1,
        encoder=trunk,
        decoder=trunk,
        backbone=ConvolutionalSettings(vocabulary=vocabulary, num_keypoints=4, channels=(4, 8, 8, 8), trunk=trunk),
    )


def toy_vla(seed: int = 0) -> VLA:
    tokenizer = train_tokenizer(["move the arm", "hand it over"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vla = build_vla(toy_config(vocabulary=tokenizer.get_vocab_size()), tokenizer)
        # The decoder starts at zero velocity; chunks of an untrained toy must still depend on what it is asked.
        torch.nn.init.normal_(vla.prior.decoder.velocity_out.weight, std=0.3)
        return vla


def toy_request(spec: EmbodimentSpec, *, seed: int = 0, num_history_steps: int = 0) -> ChunkRequest:
    generator = torch.Generator().manual_seed(seed)

    def frame(height: int, width: int) -> torch.Tensor:
        return torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)

    history = num_history_steps > 0
    return ChunkRequest(
        embodiment=spec.name,
        images={camera.name: frame(camera.height, camera.width) for camera in spec.cameras},
        state=torch.rand(spec.state_dim, generator=generator) - 0.5,
        instruction="move the arm",
        history_states=torch.rand(num_history_steps, spec.state_dim, generator=generator) - 0.5 if history else None,
        history_actions=torch.rand(num_history_steps, spec.action_dim, generator=generator) - 0.5 if history else None,
        seed=seed,
    )


def write_toy_checkpoint(directory: Path, *, seed: int = 0) -> str:
    """A checkpoint of random weights for two bodies; returns its revision."""
    vla, statistics = toy_vla(seed), [toy_statistics(spec) for spec in TOY_SPECS]
    policy = Policy(vla=vla, specs=TOY_SPECS, statistics=statistics, manifest={}, revision="")
    requests = [
        replace(toy_request(spec, seed=7, num_history_steps=2), num_inference_steps=vla.config.num_inference_steps)
        for spec in TOY_SPECS
    ]
    return write_checkpoint(
        directory,
        vla=vla,
        specs=TOY_SPECS,
        statistics=statistics,
        probe=list(zip(requests, policy.predict_chunk(requests), strict=True)),
        manifest={"method": "none", "variant": "history", "data": {}, "training": {}, "metrics": {}, "git_commit": ""},
    )


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "toy"
    write_toy_checkpoint(directory)
    return directory


@pytest.fixture(scope="session")
def make_toy_request() -> Callable[..., ChunkRequest]:
    return toy_request


@pytest.fixture(scope="session")
def toy_specs() -> tuple[EmbodimentSpec, ...]:
    return TOY_SPECS


# What lies beside the weights of published models, at toy size.
_PROCESSORS: dict[str, dict[str, Any]] = {
    "smolvlm": {
        "image_processor_type": "SmolVLMImageProcessor",
        "do_image_splitting": True,
        "size": {"longest_edge": 256},
        "max_image_size": {"longest_edge": 64},
        "resample": 1,
    },
    "qwen3_vl": {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"longest_edge": 16777216, "shortest_edge": 65 * 65},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
    },
    "paligemma": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 64, "width": 64},
        "resample": 3,
        "image_seq_length": 16,
    },
}


@pytest.fixture(scope="session")
def foreign_tokenizer() -> Tokenizer:
    """A tokenizer of someone else's: image markers, and none of our reserved tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", *IMAGE_MARKERS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["close the drawer", "press the red button"], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def save_vlm(foreign_tokenizer: Tokenizer) -> Callable[..., Path]:
    """Saves a random model with large weights as Hugging Face does, in shards where told; `text` changes its config."""

    def build(
        directory: Path, family: str, *, image_size: int = 64, max_shard_size: str = "50GB", seed: int = 3, **text: Any
    ) -> Path:
        from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

        values = toy_hugging_face(family, foreign_tokenizer, image_size)
        values["text_config"] |= text
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**values))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.5)
        model.save_pretrained(directory, max_shard_size=max_shard_size)
        PreTrainedTokenizerFast(tokenizer_object=foreign_tokenizer, pad_token="<pad>").save_pretrained(directory)
        if family in _PROCESSORS:
            shared = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True, "rescale_factor": 1 / 255}
            (directory / "preprocessor_config.json").write_text(json.dumps(shared | _PROCESSORS[family]))
        return directory

    return build


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, what it gave a server on loopback and a client, and an authority that nobody trusts."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    other_ca: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("certificates")

    def make(name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None) -> Any:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer[0].subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        )
        if issuer:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, key

    authority = make("ca", None)
    make("other", None)
    for name in ("server", "client"):
        make(name, authority)
    return Certificates(
        ca=directory / "ca.pem",
        server=directory / "server.pem",
        server_key=directory / "server.key",
        client=directory / "client.pem",
        client_key=directory / "client.key",
        other_ca=directory / "other.pem",
    )
