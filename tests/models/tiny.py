"""One small configuration of every family, for tests that hold for all of them."""

TINY = {
    "var": {
        "family": "var",
        "transformer": {"depth": 2, "num_heads": 2, "embed_dim": 48, "num_classes": 5,
                        "patch_nums": [1, 2, 3], "vocab_size": 40, "z_channels": 8},
        "tokenizer": {"vocab_size": 40, "z_channels": 8, "ch": 32, "ch_mult": [1, 1],
                      "num_res_blocks": 1, "patch_nums": [1, 2, 3]},
    },
    "rar": {
        "family": "rar",
        "transformer": {"depth": 2, "num_heads": 2, "embed_dim": 48, "ffn_dim": 96,
                        "num_classes": 5, "tokens": 16, "vocab_size": 40},
        "tokenizer": {"vocab_size": 40, "z_channels": 8, "ch": 32, "ch_mult": [1, 1],
                      "num_res_blocks": 1, "grid": 4},
    },
    "par": {
        "family": "par",
        "transformer": {"depth": 2, "num_heads": 2, "embed_dim": 40, "hidden": 64, "num_classes": 5,
                        "grid": 4, "parallel": 4, "vocab_size": 40},
        "tokenizer": {"vocab_size": 40, "z_channels": 8, "ch": 32, "ch_mult": [1, 1],
                      "num_res_blocks": 1, "grid": 4},
    },
    "mar": {
        "family": "mar",
        "transformer": {"embed_dim": 48, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2,
                        "diff_width": 32, "diff_depth": 1, "num_classes": 5, "grid": 4,
                        "z_channels": 8, "buffer": 6, "diffusion_steps": 10, "num_iter": 4},
        "tokenizer": {"z_channels": 8, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1,
                      "latent_side": 4},
    },
    "switti": {
        "family": "switti",
        "transformer": {"depth": 2, "num_heads": 2, "embed_dim": 48, "num_classes": 5,
                        "patch_nums": [1, 2, 3], "vocab_size": 40, "z_channels": 8,
                        "text_tokens": 6, "text_dim": 40, "pooled_dim": 24, "guided_scales": 2},
        "tokenizer": {"vocab_size": 40, "z_channels": 8, "ch": 32, "ch_mult": [1, 1],
                      "num_res_blocks": 1, "patch_nums": [1, 2, 3]},
    },
}  # fmt: skip
