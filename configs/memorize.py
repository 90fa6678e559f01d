"""The whole of Linux 1.0 by heart: 561 files, 4.7 MB, in 4.9 million parameters."""
hidden_size = 192
intermediate_size = 576
num_hidden_layers = 7
num_attention_heads = 3
num_key_value_heads = 3
batch_size = 16
epochs = 60
muon_lr = 0.01
learning_rate = 6e-3
warmup_steps = 100
decay = 0.7
mend_steps = 1000
eval_every = 3000
