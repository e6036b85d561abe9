"""The encoder: image and text through the same layers, together or as two tied passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ofa_exit.models.archs import RESNET_STAGES
from ofa_exit.models.attention import split_heads
from ofa_exit.models.encoder_out import EncoderOut
from ofa_exit.models.encoder_pass import Biases, EncoderPass, ImageTokens
from ofa_exit.models.layers import EncoderLayer
from ofa_exit.models.positions import (
    ShapeCache,
    grid_embeddings,
    grid_ids,
    image_buckets,
    relative_bias,
    round_up,
    token_buckets,
    zero_table,
)
from ofa_exit.models.shared_images import per_image, per_sentence
from ofa_exit.models.stem import ResNetStem, rising_rates
from ofa_exit.models.text_pass import distinct_texts, run_prompt
from ofa_exit.policies.base import ExitPolicy, Gate
from ofa_exit.runtime.flops import Work, linear_flops
from ofa_exit.runtime.token_exits import TokenExits
from ofa_exit.runtime.trace import ExitTrace


class Encoder(ShapeCache):
    """OFA's encoder: names and shapes are those of its checkpoints.

    Args:
        cfg: the model's arguments, an OFAConfig.
        embed_tokens: the embedding shared with the decoder, [V, C].
    """

    version: Tensor
    text_length_multiple = 32  # joint position biases are made for such text lengths
    token_rp_bucket: Tensor
    image_rp_bucket: Tensor
    embed_images: nn.Module

    def __init__(self, cfg: Any, embed_tokens: nn.Embedding) -> None:
        nn.Module.__init__(self)  # fairseq's base, which ofa.py adds, wants a dictionary here
        dim, heads = cfg.encoder_embed_dim, cfg.encoder_attention_heads
        self.cfg = cfg
        self.padding_idx = int(embed_tokens.padding_idx or 0)
        self.exit_policy: Optional[ExitPolicy] = None
        self.last_trace: Optional[ExitTrace] = None
        self.token_exits: Optional[TokenExits] = None
        self.always_traced = False  # without a policy, too
        self.pos_scaling = (dim // heads * cfg.attn_scale_factor) ** -0.5
        self.register_buffer("version", torch.tensor([3.0]))
        self.register_buffer(
            "token_rp_bucket", token_buckets(cfg.token_bucket_size, cfg.max_source_positions)
        )
        self.register_buffer("image_rp_bucket", image_buckets(cfg.image_bucket_size))

        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(dim)
        self.type_embedding = nn.Embedding(2, dim)
        stem = ResNetStem(
            RESNET_STAGES[cfg.resnet_type], cfg.resnet_width, cfg.resnet_drop_path_rate, cfg.sync_bn
        )
        self.image_proj = nn.Linear(stem.out_channels, dim)
        self.embed_images = nn.SyncBatchNorm.convert_sync_batchnorm(stem) if cfg.sync_bn else stem
        if cfg.freeze_resnet:
            self.embed_images.requires_grad_(False)
        self.patch_layernorm_embedding = nn.LayerNorm(dim)

        self.embed_positions = nn.Embedding(cfg.max_source_positions + 2, dim)
        self.embed_image_positions = nn.Embedding(cfg.image_bucket_size**2 + 1, dim)
        self.pos_ln = nn.LayerNorm(dim)
        self.image_pos_ln = nn.LayerNorm(dim)
        self.pos_q_linear = nn.Linear(dim, dim)
        self.pos_k_linear = nn.Linear(dim, dim)

        rates = rising_rates(cfg.encoder_drop_path_rate, cfg.encoder_layers)
        self.layers = nn.ModuleList(
            EncoderLayer(
                dim,
                cfg.encoder_ffn_embed_dim,
                heads,
                cfg.attn_scale_factor,
                cfg.dropout,
                cfg.attention_dropout,
                cfg.activation_dropout,
                rate,
            )
            for rate in rates
        )
        self.layer_norm = nn.LayerNorm(dim)
        self.token_rel_pos_table_list = nn.ModuleList(
            zero_table(2 * cfg.token_bucket_size - 1, heads) for _ in rates
        )
        self.image_rel_pos_table_list = nn.ModuleList(
            zero_table((2 * cfg.image_bucket_size - 1) ** 2 + 3, heads) for _ in rates
        )
        self.dropout = nn.Dropout(cfg.dropout)
        for embedding in (self.type_embedding, self.embed_positions, self.embed_image_positions):
            nn.init.normal_(embedding.weight, mean=0.0, std=0.02)

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        if self.cfg.freeze_resnet:
            self.embed_images.eval()  # frozen weights keep their statistics too
        return self

    # ------------------------------------------------------------------ inputs

    def embed_image(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens [S, h·w, C] of images [S, 3, H, W], and their grid (h, w)."""
        features = self.embed_images(images)
        x = self.image_proj(features.flatten(2).transpose(1, 2)) + self.type_embedding.weight[1]
        grid = (features.size(2), features.size(3))
        return self.dropout(self.patch_layernorm_embedding(x)), grid

    def embed_text(self, src_tokens: Tensor) -> Tensor:
        """Return the embeddings [S, T, C] of tokens, Long [S, T].

        Raises:
            ValueError: the text is longer than ``max_source_positions``.
        """
        if src_tokens.size(1) > self.cfg.max_source_positions:
            raise ValueError(
                f"source of {src_tokens.size(1)} tokens is longer than --max-source-positions "
                f"{self.cfg.max_source_positions}: lower --max-src-length"
            )
        x = self.embed_tokens(src_tokens) + self.type_embedding.weight[0]
        return self.dropout(self.layernorm_embedding(x))

    def image_positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the normed position embeddings [1, h·w, C] of the cells of a grid (h, w).

        ``interpolate_position`` resizes those of ``orig_patch_image_size``, if the grid is finer.
        """
        side = self.cfg.orig_patch_image_size // 16 if self.cfg.interpolate_position else None
        embedded = grid_embeddings(
            self.embed_image_positions, grid, self.cfg.image_bucket_size, side
        )
        return self.image_pos_ln(embedded)

    def text_positions(self, length: int) -> Tensor:
        """Return the normed position embeddings [1, length, C] of a text."""
        return self.pos_ln(self.embed_positions.weight[:length].unsqueeze(0))

    # ------------------------------------------------------------------ biases

    def absolute_bias(self, positions: Tensor) -> Tensor:
        """Return (q(pos)·scaling)·k(pos)ᵀ, which all layers share.

        Args:
            positions: [1, T, C].

        Returns: [1, heads, T, T].
        """
        heads = self.cfg.encoder_attention_heads
        query = split_heads(self.pos_q_linear(positions), heads)  # [1, heads, T, C / heads]
        key = split_heads(self.pos_k_linear(positions), heads)
        return query * self.pos_scaling @ key.transpose(2, 3)

    def image_bias(self, layer: int, grid: tuple[int, int]) -> Tensor:
        """Return the 2-D relative bias [1, heads, h·w, h·w] of a layer, from 0."""
        ids = grid_ids(*grid, self.cfg.image_bucket_size, self.image_rp_bucket.device)
        return relative_bias(
            self.image_rel_pos_table_list[layer], self.image_rp_bucket[ids][:, ids]
        )

    def text_bias(self, layer: int, length: int) -> Tensor:
        """Return the 1-D relative bias [1, heads, length, length] of a layer, from 0."""
        return relative_bias(
            self.token_rel_pos_table_list[layer], self.token_rp_bucket[:length, :length]
        )

    def _biases(self, grid: Optional[tuple[int, int]], length: int) -> Biases:
        """Return the position terms of a batch.

        Args:
            grid: (h, w) of its images; None without images.
            length: text tokens, padding included.
        """
        layers = range(len(self.layers))

        def image_terms() -> tuple[Tensor, list[Tensor]]:
            assert grid is not None
            positions = self.image_positions(grid)  # [1, h·w, C]
            absolute = self.absolute_bias(positions)  # [1, heads, h·w, h·w]
            if self.cfg.no_image_relative_bias:
                return positions, [absolute for _ in layers]
            return positions, [absolute + self.image_bias(i, grid) for i in layers]

        def text_terms() -> tuple[Tensor, list[Tensor]]:
            positions = self.text_positions(length)  # [1, length, C]
            absolute = self.absolute_bias(positions)  # [1, heads, length, length]
            return positions, [absolute + self.text_bias(i, length) for i in layers]

        # Batches differ in text length: joint terms are made for a longer text, and sliced.
        made_length = length
        if not torch.is_grad_enabled():
            made_length = round_up(length, self.text_length_multiple)
            made_length = min(made_length, self.cfg.max_source_positions)

        def joint_terms() -> tuple[Tensor, list[Tensor]]:
            assert grid is not None
            image = self.image_positions(grid)
            positions = torch.cat([image, self.text_positions(made_length)], dim=1)  # [1, T, C]
            absolute, cells = self.absolute_bias(positions), image.size(1)  # [1, heads, T, T]
            biases = []  # image and text have a relative bias within themselves only
            for i in layers:
                bias = absolute.clone()
                bias[..., :cells, :cells] += self.image_bias(i, grid)
                bias[..., cells:, cells:] += self.text_bias(i, made_length)
                biases.append(bias)
            return positions, biases

        if grid is not None and not self.cfg.split_modalities:
            positions, joint = self.once_per_shape("joint", (grid, made_length), joint_terms)
            end = grid[0] * grid[1] + length
            positions = self.once_per_shape("source", (grid, length), lambda: positions[:, :end])
            return Biases(positions, None, None, [bias[..., :end, :end] for bias in joint])
        positions, text = self.once_per_shape("text", length, text_terms)
        if grid is None:
            return Biases(positions, None, text, None)
        image_positions, image = self.once_per_shape("image", grid, image_terms)
        both = self.once_per_shape(
            "source", (grid, length), lambda: torch.cat([image_positions, positions], dim=1)
        )
        return Biases(both, image, text, None)

    def bias_flops(self, image: int, text: int) -> dict[str, int]:
        """Return the FLOPs of the position biases of one shape of batch, by shape.

        4·T·C² + 2·pairs·C over T = image + text positions. The pairs are T², or those within each
        pass of a split encoder. Joint biases have text lengths of ``text_length_multiple``.
        """
        dim = self.cfg.encoder_embed_dim
        if image and not self.cfg.split_modalities:
            text = round_up(text, self.text_length_multiple)
        text = min(text, self.cfg.max_source_positions)
        tokens = image + text
        pairs = image**2 + text**2 if self.cfg.split_modalities else tokens**2
        return {f"encoder {image} {text}": 4 * tokens * dim**2 + 2 * pairs * dim}

    def image_tokens(self, height: int, width: int) -> int:
        """Return the number of tokens of an image of H x W pixels."""
        stem: Any = self.embed_images
        return math.prod(stem.grid(height, width))

    def image_flops(self, height: int, width: int) -> int:
        """Return the FLOPs of an image of H x W pixels before the layers.

        Those of the stem, and 2·T·channels·C of ``image_proj`` over its T tokens.
        """
        stem: Any = self.embed_images
        tokens, projection = self.image_tokens(height, width), self.image_proj
        projected = linear_flops(tokens, projection.in_features, projection.out_features)
        return stem.flops(height, width) + projected

    # ------------------------------------------------------------------ passes

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        patch_images: Optional[Tensor] = None,
        patch_masks: Optional[Tensor] = None,
        step_limit: Optional[Tensor] = None,
        padded: bool = True,
        image_rows: Optional[Tensor] = None,
        shared_source: bool = False,
        text_keys: Optional[Sequence[str]] = None,
    ) -> EncoderOut:
        """Encode S sentences.

        Args:
            src_tokens: Long [S, Tt], right-padded. src_lengths is accepted for fairseq.
            patch_images: [I, 3, H, W], I = S without ``image_rows``; None for text alone.
            patch_masks: Bool [S], False for a sample without an image.
            step_limit: Long [S], for the decoder's gate (N of MuE Eq. 11).
            padded: False if every text is as long as the longest and no image is missing. Then no
                mask is written, which saves a joint encoder one bias [S, heads, T, T] per layer.
            image_rows: Long [S], the image of each sentence, if sentences share images. A shared
                image passes the stem once, and with ``split_modalities`` the layers too.
            shared_source: sentences that share an image have the same text, too. Then each image is
                encoded once with its text, unless a trace is recorded.
            text_keys: one per sentence, equal where texts are. In inference with
                ``split_modalities`` equal texts share a text pass. That of a batch with a single
                text is kept for later batches.
        """
        if patch_images is not None and patch_masks is None:
            patch_masks = src_tokens.new_ones(len(src_tokens), dtype=torch.bool)
        has_exits = self.exit_policy is not None or self.token_exits is not None
        is_traced = not self.training and (has_exits or self.always_traced)
        repeated = None  # Long [S], the encoded row of each sentence
        if patch_images is not None and patch_masks is not None and shared_source and not is_traced:
            repeated, image_rows, text_keys = image_rows, None, None
            src_tokens = per_image(src_tokens, len(patch_images), repeated)
            patch_masks = per_image(patch_masks, len(patch_images), repeated)
        split, grid, present = self.cfg.split_modalities, None, None
        if not split or patch_images is None or self.training or torch.is_grad_enabled():
            text_keys = None  # no text pass, or one that learns
        texts = distinct_texts(src_tokens, text_keys)
        unused = texts.tokens.eq(self.padding_idx)  # Bool [U, Tt]
        text = self.embed_text(texts.tokens).masked_fill(unused.unsqueeze(-1), 0.0)
        image = text[:, :0]
        if patch_images is not None:
            assert patch_masks is not None
            present = per_image(patch_masks, len(patch_images), image_rows)  # Bool [I]
            image, grid = self.embed_image(patch_images)  # [I, Ti, C]
            image = image.masked_fill(~present[:, None, None], 0.0)
            if not split:
                image = per_sentence(image, image_rows)
        padding = per_sentence(unused, texts.rows)
        if patch_masks is not None and grid is not None:
            cells = grid[0] * grid[1]
            padding = torch.cat([~patch_masks[:, None].expand(-1, cells), padding], dim=1)
        biases = self._biases(grid, src_tokens.size(1))

        if split and grid is not None:
            assert biases.image is not None and biases.text is not None
            # Without padding every row has an image, and no row is masked or left out.
            shown, masked = (present, unused) if padded else (None, None)
            exits = self._token_exits(image)
            image_pass = EncoderPass(self.layers, biases.image, image, None, shown, exits)
            text_pass = EncoderPass(self.layers, biases.text, text, padding=masked)
            image = per_sentence(self._run(image_pass, "image"), image_rows)
            if texts.only is None:
                self._run(text_pass, "text")
                text_layers_run = text_pass.layers_used
            else:
                gate, policy = self._gate("text"), self.exit_policy
                text_layers_run = run_prompt(text_pass, texts.only, gate, policy, self)
            x = torch.cat([image, per_sentence(text_pass.output, texts.rows)], dim=1)  # [S, T, C]
            image_layers = per_sentence(image_pass.layers_used, image_rows)
            text_layers = per_sentence(text_pass.layers_used, texts.rows)
            # The work of a shared image is counted once, that of a shared text per sentence.
            passes = [(image_pass, None), (text_pass, texts.rows)]
        else:
            both = biases.joint if grid is not None else biases.text
            assert both is not None
            x = torch.cat([image, text], dim=1)
            masked, exits = padding if padded else None, self._token_exits(image)
            joint_pass = EncoderPass(self.layers, both, x, masked, token_exits=exits)
            x = self._run(joint_pass, "text" if split else "joint")
            passes, text_layers = [(joint_pass, None)], joint_pass.layers_used
            text_layers_run = text_layers
            has_image = patch_masks if patch_masks is not None and grid is not None else 0
            image_layers = text_layers * has_image

        self.last_trace = None
        if is_traced:
            stem = [] if present is None else [self._stem_work(patch_images, present)]
            self.last_trace = ExitTrace(
                image_layers,
                text_layers,
                source_tokens=(~padding).sum(dim=1),
                work=[*stem, *(part for one, rows in passes for part in one.work(rows))],
                full_work=[*stem, *(one.full_work(rows) for one, rows in passes)],
                text_layers_run=text_layers_run,
            )
        states = per_sentence(self.layer_norm(x), repeated)
        return EncoderOut(
            states=states,
            padding_mask=per_sentence(padding, repeated),
            positions=biases.positions,
            sentences=torch.arange(len(states), device=x.device),
            step_limit=step_limit,
            trace=self.last_trace,
        )

    def _gate(self, part: str) -> Optional[Gate]:
        """Return the policy's gate of ``part``: "image", "text" or "joint"."""
        policy = None if self.training else self.exit_policy
        return None if policy is None else policy.gate(part)

    def _token_exits(self, image: Tensor) -> Optional[ImageTokens]:
        """Return how the tokens of images [S, h·w, C] exit one by one; None if they do not."""
        if self.token_exits is None or self.training or not image.size(1):
            return None
        return ImageTokens(image.size(1), self.token_exits)

    def _run(self, layers: EncoderPass, part: str) -> Tensor:
        return layers.run(self._gate(part), self.training and self.cfg.checkpoint_activations)

    def _stem_work(self, images: Any, present: Tensor) -> Work:
        """Return the work of the stem on images [I, 3, H, W], of which Bool [I] are present."""
        height, width = images.shape[-2:]
        units = present.long()
        return Work("stem", lambda tokens: self.image_flops(height, width), units, tokens=units)

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        """Reorder for beam search, see ``EncoderOut.reordered``."""
        return encoder_out.reordered(new_order)
