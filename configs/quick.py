"""Part of the tree, learned by heart in two minutes on two ordinary CPU cores."""
train_bytes = 150000
hold_out_bytes = 50000
hidden_size = 96
intermediate_size = 288
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 128
unaddressed = 0.1
negatives = 4096
batch_size = 16
epochs = 24
learning_rate = 1e-2
beta2 = 0.98
focal = 2.0
mend_steps = 400
eval_every = 200
