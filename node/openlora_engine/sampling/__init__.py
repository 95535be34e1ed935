"""From logits to tokens: what a request may ask of sampling, how it is drawn, when it stops."""
