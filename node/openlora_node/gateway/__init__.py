"""The payer's side: an OpenAI endpoint on this machine that picks nodes, signs, pays as it streams, checks receipts."""
