"""The networks: UNet, VAE, CLIP text model, tokenizer, safety checker. One file each; none knows about techniques."""
