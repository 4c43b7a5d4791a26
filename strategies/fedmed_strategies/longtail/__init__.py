"""What long-tailed and partly annotated classes ask for: losses and samplers, one method a file."""
