"""The consortium's authority: certificates, site kits, renewal, revocation, and the registry that the server reads."""
