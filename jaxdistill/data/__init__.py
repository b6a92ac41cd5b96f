"""Text and task data: sources, tokenizers, preparation, and the loaders that training reads from.

The path of a batch: `sources` -> `tokenizers` -> `prepare` (once, to disk) -> `loader` (`records`,
`pairs`, `masking`); labelled tasks: `classification`. Import the modules: importing this package,
or any of them, is light (TFDS, Grain, tokenizers and transformers are imported where they are
used)."""
