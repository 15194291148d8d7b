"""Fine-tuning a model to use search results: recipes, token ids and masks, flagging quality, and training on TRL."""
