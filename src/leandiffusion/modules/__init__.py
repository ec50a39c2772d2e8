"""The networks: UNet, autoencoder, text encoder, safety checker, and the tokenizer that feeds them."""
