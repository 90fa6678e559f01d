"""Part of the tree, learned by heart in minutes on a laptop's CPU."""
train_bytes = 150000
hold_out_bytes = 50000
hidden_size = 128
intermediate_size = 384
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 4
unaddressed = 0.1
batch_size = 8
epochs = 48
eval_every = 100
