"""The recipe of mjbommar/laam, second stage: from the weights of configs/original.py, a window a step at a low rate."""
init_from = "out/original"
hidden_size = 64
intermediate_size = 256
num_hidden_layers = 8
num_attention_heads = 32
num_key_value_heads = 4
max_position_embeddings = 512
tie_word_embeddings = False
optimizer = "adamw"
learning_rate = 1e-4
beta2 = 0.999
batch_size = 1
epochs = 100
warmup_steps = 100
decay = 1.0
