"""Options of OFA's scripts as they are published, at the sizes of a miniature."""

import shlex

_TRAIN = """
  --selected-cols={cols} --bpe-dir={data} --user-dir={user_dir} --restore-file={checkpoint}
  --reset-optimizer --reset-dataloader --reset-meters --save-dir={out} --arch=ofa_nano
  --batch-size=4 --update-freq=2 --encoder-normalize-before --decoder-normalize-before
  --share-decoder-input-output-embed --share-all-embeddings --layernorm-embedding
  --patch-layernorm-embedding --code-layernorm-embedding --resnet-drop-path-rate=0.0
  --encoder-drop-path-rate=0.1 --decoder-drop-path-rate=0.1 --dropout=0.1 --attention-dropout=0.0
  --weight-decay=0.01 --optimizer=adam --adam-betas="(0.9,0.999)" --adam-eps=1e-08 --clip-norm=1.0
  --lr-scheduler=polynomial_decay --lr=1e-2 --log-format=simple --log-interval=10
  --fixed-validation-seed=7 --save-interval=1 --validate-interval=1
  --maximize-best-checkpoint-metric --max-src-length=80 --max-tgt-length=20
  --find-unused-parameters --add-type-embedding --scale-attn --scale-fc --scale-heads
  --disable-entangle --num-bins=0 --patch-image-size=32 --fp16-scale-window=512 --num-workers=0
"""
_EPOCHS = "--max-epoch=2 --warmup-ratio=0.5"
_BEST = "--keep-best-checkpoints=1 --save-interval-updates=500 --validate-interval-updates=500"
_FROZEN = "--freeze-encoder-embedding --freeze-decoder-embedding"
_SEARCH = """'{{"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}}'"""
_CAPTION = f"""
  {_TRAIN} {_EPOCHS} {_BEST} {_FROZEN} --no-epoch-checkpoints --eval-cider --eval-args={_SEARCH}
  --best-checkpoint-metric=cider
"""
_STAGE1 = "--label-smoothing=0.1 --drop-worst-ratio=0.2 --drop-worst-after=1 --fp16"
_VQA = f"""
  {_TRAIN} {_FROZEN} --criterion=adjust_label_smoothed_cross_entropy --label-smoothing=0.1
  --keep-last-epochs=15 --best-checkpoint-metric=vqa_score --max-object-length=30
  --ans2label-file={{answers}} --prompt-type=prev_output --fp16 --add-object --uses-ema --store-ema
  --ema-fp32 --ema-decay=0.9999 --ema-start-update=0 --val-inference-type={{inference}}
"""
_TRAININGS = {
    "caption1": f"{_CAPTION} {_STAGE1} --criterion=ajust_label_smoothed_cross_entropy",
    "caption1_el": f"""
      {_CAPTION} {_STAGE1} --criterion=ajust_label_smoothed_encouraging_loss --log-end 0.75
      --drop-best-ratio 0.05 --drop-best-after 1
    """,
    "caption2": f"""
      {_CAPTION} --end-learning-rate=2e-7 --scst --scst-args={_SEARCH} --memory-efficient-fp16
    """,
    "snli_ve": f"""
      {_TRAIN} {_EPOCHS} {_BEST} --criterion=adjust_label_smoothed_cross_entropy
      --label-smoothing=0.0 --best-checkpoint-metric=snli_score --prompt-type=prev_output
      --add-caption --fp16
    """,
    "vqa": f"{_VQA} --total-num-update=3 --warmup-updates=1 --max-update=3",
    "vqa_base": f"{_VQA} {_EPOCHS}",
}

_EVALUATE = """
  --path={checkpoint} --user-dir={user_dir} --batch-size=16 --log-format=simple --log-interval=10
  --seed=7 --gen-subset={split} --results-path={out} --fp16 --num-workers=0
  --model-overrides={overrides}
"""
_ZERO_SHOT = (
    "--bpe-dir={data} --selected-cols={cols} --patch-image-size=32 --prompt-type=prev_output"
)
_EVALUATIONS = {
    "eval_caption": f"""
      {_EVALUATE} --beam=5 --max-len-b=16 --no-repeat-ngram-size=3 --temperature=0.98 --lenpen=0.98
    """,
    "eval_snli_ve": f"{_EVALUATE} {_ZERO_SHOT} --max-src-length=80",
    "eval_vqa": f"""
      {_EVALUATE} {_ZERO_SHOT} --ema-eval --beam-search-vqa-eval --beam=5 --unnormalized
      --temperature=1.0
    """,
    "eval_vqa_allcand": f"{_EVALUATE} --ema-eval",
}
TRAININGS, EVALUATIONS = tuple(_TRAININGS), tuple(_EVALUATIONS)


def recipe(script: str, **values: object) -> list[str]:
    """Return the arguments of a script, with values for its names in braces."""
    text = {**_TRAININGS, **_EVALUATIONS}[script]
    quoted = {name: shlex.quote(str(value)) for name, value in values.items()}
    return shlex.split(text.format(**quoted))
