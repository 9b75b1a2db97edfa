"""The mathematics, pure: tensors and numbers in, tensors and numbers out.

Names of tensors end in their dimensions: Q questions, G trajectories per question, B sequences, T tokens,
K prefixes scored for L-hat (or queries), A answer tokens, V vocabulary, H attention heads, D hidden size, E size of a
head.
"""
