"""The contract's side: each rpc converts, calls the rules, and converts back."""
