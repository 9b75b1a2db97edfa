"""Strings and token ids: questions, prompts, answers, training examples. Pure: no process, no device."""
