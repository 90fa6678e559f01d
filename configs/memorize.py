"""The whole of Linux 1.0 by heart: 561 files, 4.7 MB, in 4.8 million parameters."""
hidden_size = 128
intermediate_size = 384
num_hidden_layers = 3
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 128
negatives = 6144
batch_size = 32
epochs = 60
muon_lr = 0.01
learning_rate = 8e-3
beta2 = 0.98
focal = 2.0
warmup_steps = 100
decay = 0.7
mend_steps = 4000
eval_every = 5000
