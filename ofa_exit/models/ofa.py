"""The model as fairseq sees it: its arguments, and encoder and decoder under fairseq's bases."""

import logging
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel, FairseqIncrementalDecoder
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY as TASK_DATACLASSES
from torch import Tensor, nn

from ofa_exit.heads.base import parse_exit_layers
from ofa_exit.heads.registry import DEFAULT_HEAD, describe_heads
from ofa_exit.models.archs import RESNET_STAGES
from ofa_exit.models.arguments import check_arguments
from ofa_exit.models.checkpoints import (
    IMPLIED_FLAGS,
    REQUIRED_FLAGS,
    check_structure,
    fit_state_dict,
)
from ofa_exit.models.decoder import Decoder
from ofa_exit.models.encoder import Encoder
from ofa_exit.models.encoder_out import EncoderOut
from ofa_exit.models.stem import load_resnet_weights
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.runtime.drafts import Drafting
from ofa_exit.runtime.kv_cache import check_kv_mode
from ofa_exit.runtime.token_exits import TokenExits
from ofa_exit.runtime.trace import ExitTrace

logger = logging.getLogger(__name__)


@dataclass
class OFAConfig(FairseqDataclass):
    """Arguments of the model; names and meanings are OFA's. Defaults are those of ofa_base."""

    encoder_embed_dim: int = field(default=768, metadata={"help": "encoder channels"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "encoder FFN channels"})
    encoder_layers: int = field(default=6, metadata={"help": "encoder layers"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "encoder heads"})
    decoder_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "decoder channels; default: the encoder's"}
    )
    decoder_ffn_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "decoder FFN channels; default: the encoder's"}
    )
    decoder_layers: int = field(default=6, metadata={"help": "decoder layers"})
    decoder_attention_heads: int = field(default=12, metadata={"help": "decoder heads"})
    dropout: float = field(default=0.1, metadata={"help": "dropout of embeddings and branches"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(
        default=0.0, metadata={"help": "dropout after the FFN's gelu"}
    )
    encoder_drop_path_rate: float = field(
        default=0.0, metadata={"help": "stochastic depth of the last encoder layer"}
    )
    decoder_drop_path_rate: float = field(
        default=0.0, metadata={"help": "stochastic depth of the last decoder layer"}
    )
    max_source_positions: int = field(default=1024, metadata={"help": "longest source text"})
    max_target_positions: int = field(default=1024, metadata={"help": "longest target text"})
    attn_scale_factor: float = field(
        default=2.0, metadata={"help": "attention scores are divided by sqrt(this * head size)"}
    )
    token_bucket_size: int = field(default=256, metadata={"help": "buckets of the 1-D bias"})
    image_bucket_size: int = field(
        default=42, metadata={"help": "largest image side in tokens of 16 pixels"}
    )
    code_image_size: int = field(
        default=128, metadata={"help": "image size of OFA's image generation; kept for checkpoints"}
    )
    orig_patch_image_size: int = field(
        default=256, metadata={"help": "image size that the image positions were trained for"}
    )
    interpolate_position: bool = field(
        default=False,
        metadata={"help": "resize image positions for images above --orig-patch-image-size"},
    )
    resnet_type: str = field(
        default="resnet101", metadata={"help": f"image stem: {', '.join(RESNET_STAGES)}"}
    )
    resnet_width: int = field(
        default=64, metadata={"help": "channels of the stem's first convolution"}
    )
    resnet_model_path: Optional[str] = field(
        default=None, metadata={"help": "torchvision ResNet weights to start the stem from"}
    )
    resnet_drop_path_rate: float = field(
        default=0.0, metadata={"help": "stochastic depth inside the stem"}
    )
    freeze_resnet: bool = field(default=False, metadata={"help": "do not train the stem"})
    freeze_encoder_embedding: bool = field(
        default=False,
        metadata={"help": "do not train the word embedding, which the decoder's output shares"},
    )
    freeze_decoder_embedding: bool = field(
        default=False, metadata={"help": "the same as --freeze-encoder-embedding: OFA has one"}
    )
    sync_bn: bool = field(
        default=False, metadata={"help": "batch norm over all processes (epsilon 1e-3, as in OFA)"}
    )
    split_modalities: bool = field(
        default=False,
        metadata={
            "help": "run the encoder's layers over image and text separately (MuE Eq. 3), so that "
            "each can exit by itself"
        },
    )
    exit_layers: Optional[str] = field(
        default=None,
        metadata={
            "help": "decoder layers, counted from 1 and separated by commas, that exit heads "
            "follow; all: every layer before the last (default: no heads to train)"
        },
    )
    exit_head: str = field(
        default=DEFAULT_HEAD,
        metadata={
            "help": f"kind of the heads of --exit-layers: {describe_heads()}; or any other that is "
            "registered"
        },
    )
    no_image_relative_bias: bool = field(
        default=False,
        metadata={
            "help": "leave the image's 2-D relative bias out of a --split-modalities encoder, for "
            "checkpoints trained by MuE's released code, which overwrites it"
        },
    )
    checkpoint_activations: bool = field(
        default=False,
        metadata={"help": "recompute each layer in the backward pass to save memory"},
    )


def _warn_unknown(cfg: Any) -> None:
    """Warn about unknown model arguments, as in checkpoints of other versions.

    A checkpoint keeps all arguments of its run in one place. Those that belong to fairseq itself,
    or to a registered task, criterion or optimizer, cause no warning.
    """
    names = set(vars(cfg) if hasattr(cfg, "__dict__") and not hasattr(cfg, "keys") else cfg.keys())
    known = {option.name for option in fields(OFAConfig)} | {*REQUIRED_FLAGS, *IMPLIED_FLAGS}
    known |= {"arch", "task", "data", "user_dir", *REGISTRIES}
    groups = [option.type for option in fields(FairseqConfig)]
    registered = [registry["dataclass_registry"] for registry in REGISTRIES.values()]
    for kind in [*groups, *(c for r in registered for c in r.values()), *TASK_DATACLASSES.values()]:
        if is_dataclass(kind):
            known |= {option.name for option in fields(kind)}
    unknown = sorted(name for name in names - known if not name.startswith("_"))
    if unknown:
        logger.warning("unknown model arguments, ignored: %s", ", ".join(unknown))


class OFAEncoder(Encoder, FairseqEncoder):
    """``Encoder`` as a fairseq encoder."""

    def __init__(self, cfg: OFAConfig, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(cfg, embed_tokens)
        self.dictionary = dictionary

    def max_positions(self) -> int:
        return self.cfg.max_source_positions

    def forward_torchscript(self, net_input: dict[str, Any]) -> EncoderOut:
        """Encode a batch for fairseq's generator; ``prev_output_tokens`` is ignored."""
        return self(**{k: v for k, v in net_input.items() if k != "prev_output_tokens"})


class OFADecoder(Decoder, FairseqIncrementalDecoder):
    """``Decoder`` as a fairseq decoder."""

    def __init__(self, cfg: OFAConfig, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(cfg, embed_tokens)
        self.dictionary = dictionary
        self.adaptive_softmax = None
        self.onnx_trace = False

    def max_positions(self) -> int:
        return self.cfg.max_target_positions


class OFAModel(FairseqEncoderDecoderModel):
    """OFA with exits. With no policy it is plain OFA."""

    from_checkpoint = False  # whether its weights are another training's
    grows_vocabulary = True  # whether words that a checkpoint lacks get new rows, to be trained

    def __init__(self, cfg: OFAConfig, encoder: OFAEncoder, decoder: OFADecoder) -> None:
        super().__init__(encoder, decoder)
        self.cfg = cfg
        self.num_updates = 0
        self.trained_modules: Optional[list[nn.Module]] = None  # set by criterions that freeze

    def train(self, mode: bool = True) -> "OFAModel":
        """Set training mode. With ``trained_modules``, all other modules stay in eval mode."""
        if self.trained_modules is None:
            return super().train(mode)
        super().train(False)
        self.training = mode
        for module in self.trained_modules:
            module.train(mode)
        return self

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "OFAModel":
        """Build the model for ``task``'s dictionary from fairseq's arguments."""
        check_structure(cfg)
        check_arguments(cfg)
        _warn_unknown(cfg)
        config = OFAConfig.from_namespace(cfg)
        config.decoder_embed_dim = config.decoder_embed_dim or config.encoder_embed_dim
        config.decoder_ffn_embed_dim = config.decoder_ffn_embed_dim or config.encoder_ffn_embed_dim
        if config.encoder_embed_dim != config.decoder_embed_dim:
            raise ValueError("OFA shares one embedding: encoder and decoder dims must be equal")
        if config.no_image_relative_bias and not config.split_modalities:
            raise ValueError("--no-image-relative-bias is for --split-modalities encoders")
        if config.exit_layers == "all":  # spelled out, as the checkpoint will say it
            layers = parse_exit_layers("all", config.decoder_layers)
            config.exit_layers = cfg.exit_layers = ",".join(map(str, layers))
        dictionary = task.target_dictionary
        embed_tokens = nn.Embedding(len(dictionary), config.encoder_embed_dim, dictionary.pad())
        nn.init.normal_(embed_tokens.weight, mean=0.0, std=config.encoder_embed_dim**-0.5)
        nn.init.zeros_(embed_tokens.weight[dictionary.pad()])
        if config.freeze_encoder_embedding or config.freeze_decoder_embedding:
            embed_tokens.requires_grad_(False)
        encoder = OFAEncoder(config, dictionary, embed_tokens)
        if config.resnet_model_path:
            load_resnet_weights(encoder.embed_images, config.resnet_model_path)
        return cls(config, encoder, OFADecoder(config, dictionary, embed_tokens))

    def configure_exits(
        self,
        policy: Optional[ExitPolicy],
        kv: str = "propagate",
        trace: bool = False,
        drafting: Optional[Drafting] = None,
        token_exits: Optional[TokenExits] = None,
    ) -> None:
        """Set the exit policy for eval mode; None runs the plain stack.

        Args:
            kv: how the K/V cache of skipped layers is filled, one of ``kv_cache.KV_MODES``.
            trace: record a trace without a policy, too.
            drafting: how the decoder drafts tokens and verifies them at full depth, for searches
                of one hypothesis; always traced, and only without a policy.
            token_exits: which image tokens exit one by one in the encoder, with or without a
                policy.

        Raises:
            ValueError: ``kv`` is unknown, or cannot serve the heads that the policy uses. Or the
                model has no layer left to verify drafts.
        """
        decoder = self.decoder
        if drafting is not None:
            drafting.check(len(decoder.layers))
            if policy is not None:
                raise ValueError("drafts are verified at full depth: leave the exit policy out")
        decoder.drafting, decoder.allowed_words = drafting, None
        check_kv_mode(kv, decoder.exit_heads.caches_kv and bool(decoder.active_heads(policy)))
        self.encoder.exit_policy = self.decoder.exit_policy = policy
        self.encoder.token_exits = token_exits
        self.encoder.always_traced = trace or drafting is not None
        self.decoder.kv_mode = kv

    def set_num_updates(self, num_updates: int) -> None:
        """Store the number of updates, which criterions read."""
        super().set_num_updates(num_updates)
        self.num_updates = num_updates

    @property
    def last_trace(self) -> Optional[ExitTrace]:
        """Return the trace of the most recent batch; None without a policy, unless asked for."""
        return self.encoder.last_trace

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        patch_images: Optional[Tensor] = None,
        patch_masks: Optional[Tensor] = None,
        prev_output_tokens: Optional[Tensor] = None,
        features_only: bool = False,
        all_layers: bool = False,
        return_layers: bool = False,
        exit_features: bool = False,
        train_backbone: bool = False,
        **encoder_options: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a teacher-forced pass; see ``Encoder.forward`` and ``Decoder.forward`` for shapes.

        Args:
            exit_features: run the backbone and its exit heads after it. Returns
                the final layer's normed features. The extras get "head_features", those of each
                head by layer number, and "exit_features", the same after the final norm.
            train_backbone: with ``exit_features``, let gradients reach the backbone.
            return_layers: add "layer_states" of the decoder and "encoder_out" to the extras.
            encoder_options: ``padded``, ``image_rows``, ``shared_source`` and ``text_keys``.
        """
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and (train_backbone or not exit_features)
        ):
            encoder_out = self.encoder(
                src_tokens, src_lengths, patch_images, patch_masks, **encoder_options
            )
            x, extra = self.decoder(
                prev_output_tokens,
                encoder_out=encoder_out,
                features_only=features_only or exit_features,
                all_layers=all_layers,
                return_layers=return_layers or exit_features,
            )
        if exit_features:
            states = extra["layer_states"] if return_layers else extra.pop("layer_states")
            heads = dict(self.decoder.head_features(states, encoder_out))
            extra["head_features"] = heads
            norm = self.decoder.layer_norm
            extra["exit_features"] = {layer: norm(x) for layer, x in heads.items()}
        if return_layers:
            extra["encoder_out"] = encoder_out
        return x, extra

    def output_layer(self, features: Tensor) -> Tensor:
        """Return the vocabulary projection of features: [..., C] -> [..., V]."""
        return self.decoder.output_layer(features)

    def max_positions(self) -> tuple[int, int]:
        return self.encoder.max_positions(), self.decoder.max_positions()

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Make an OFA checkpoint fit: more words, a larger image grid, missing exits."""
        super().upgrade_state_dict_named(state_dict, name)
        fit_state_dict(self, state_dict)
        self.from_checkpoint = True
