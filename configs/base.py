"""All settings and their defaults: a world of captioned 32 x 32 images, for two CPU cores.

All other configs start from here. This is also the list of all fields, such as
`--config.train.steps=4000`: one that is not here is an error (`own.py` adds `minutes`).
"""

import ml_collections
from ml_collections.config_dict import FieldReference, placeholder


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.name = "t2i"  # without --workdir, the run is in runs/NAME
    c.seed = 0  # of weights, batches, times and noise
    c.init_from = ""  # a finished run; training starts from its weights where their shapes fit
    # Shares of T, such as (0.33, 0.66): a copy of the network for each interval of times, best from
    # a finished run in `init_from` (udd_jax/networks/experts.py).
    c.experts = ()
    # The task, or rule, that the report shows first and a finished run names; it does every task.
    c.task = "t2i"

    # A source of captioned images (udd_jax/data/sources) and its options.
    c.data = "shapes"
    # An option that the source does not have is an error; None is the default of the source.
    c.data_options = ml_collections.ConfigDict(
        {
            "size": placeholder(int),  # most items of a split; for an embedded world, exactly
            "seed": placeholder(int),  # for an embedded world
            "captions_per_image": placeholder(int),  # for an embedded world
            "validation": placeholder(float),  # share, if the data have no such split; .05
            "test": placeholder(float),  # the same for the test split
            "trust_splits": placeholder(bool),  # True: do not check for images in two splits
            "ignore_splits": placeholder(bool),  # True: a hash decides, whatever the data name
            "caption_field": placeholder(str),  # where a row has its caption
            "split_field": placeholder(str),  # "split"; an unknown name ignores the field
            "image_field": placeholder(str),  # for parquet
            "images": placeholder(str),  # for coco: the folder of the image files
            "template": placeholder(str),  # for tfds
            "data_dir": placeholder(str),  # for tfds
        }
    )
    # What the model learns together, {name: its kind and settings of the kind}: docs/modalities.md.
    c.modalities = ml_collections.ConfigDict(
        {
            "image": {"kind": "image"},  # its settings are `image_size` and `vq`
            "text": {"kind": "text"},  # its settings are `text`
        }
    )
    # True: a record that lacks its caption, picture or another modality trains what it has; False:
    # it counts as unusable.
    c.incomplete = False
    c.skip_limit = 0.01  # largest share of images, or of captions, that may be unusable
    # S, pixels of a side; or (height, width), as in --config.image_size="(32, 48)"
    c.image_size = FieldReference(32, field_type=object)
    c.image_channels = 3  # of a picture: 3 for colours, 1 for grey, 4 for colours and opacity
    c.views = 1  # cached random crops and flips of an image; 1: the image without augmentation
    c.flip = False  # True: half of the crops are mirrored, unless a caption names a side
    c.cache = True  # False: read, crop and tokenize the images again in every epoch
    c.workers = 0  # processes that read and decode images; 0: threads of the main process

    c.text = ml_collections.ConfigDict(
        {
            "file": "",  # a vocabulary: .model, merges .txt.gz, tokenizer.json; "" trains one
            "vocab_size": 1024,  # K, at most
            "length": 13,  # M, tokens of a caption
        }
    )

    # The image tokenizer (training/train_image_tokenizer.py): a taming VQGAN. Here it is reduced to
    # cells of 8 x 8 pixels: each code depends on its own cell only (`local_*`).
    c.vq = ml_collections.ConfigDict(
        {
            "file": "",  # a finished tokenizer; "" trains one
            "model": {
                "n_embed": 192,  # K, at most
                "embed_dim": 32,  # length of a code's vector
                "z_channels": 32,  # channels on both sides of the codebook
                "ch": 64,  # channels of the first level
                "ch_mult": (1,),  # channels / ch of each level; a further level halves the grid
                "num_res_blocks": 0,  # residual blocks of a level
                "attn_resolutions": (),  # grids that have attention, such as (16,)
                "quantiser": "ema",  # or "straight_through", "gumbel"
                "beta": 0.25,  # weight that draws the encoder to its codes
                "patch": 8,  # blocks of so many pixels become channels first; 1 as published
                "local_encoder": True,  # a code depends on its own cell only
                "local_decoder": True,  # a cell is painted from its own code only
            },
            "pictures": 4096,  # most images of the training split to train on; 0: all
            "steps": 800,  # of the training
            "batch_size": 64,  # pictures of a step
            "learning_rate": 5e-3,  # of Adam, the largest
            "warmup": 20,  # steps until that
            "beta1": 0.9,  # of Adam
            "beta2": 0.99,  # of Adam
            "clip": 1.0,  # largest global norm of the gradient
            "plain_steps": 100,  # steps as an autoencoder without a codebook
            "loss": "l2",  # or "l1"
            "commitment": 1.0,  # weight of the quantiser's loss; much smaller for "gumbel": 5e-4
            "decay": 0.99,  # of the codebook's moving averages
            "restart": {
                "until": 0.8,  # share of the steps in which unused codes move
                "threshold": 0.02,  # a code is unused if its count is below it times the mean count
                "factor": 2.0,  # it moves to vectors with so many times the usual error
            },
            "merge": 5.0,  # merges codes that differ only by noise; 0 keeps all codes
            # dB, the most that merging may cost; .3, and any for an embedded world.
            "merge_cost": placeholder(float),
            # dB above cells of one colour that the tokenizer of stored data must reach; 0 is off.
            "above_flat": 3.0,
            "temperature": (0.9, 1e-6),  # of the Gumbel quantiser: first, last
            "perceptual": 0.0,  # weight of LPIPS; needs its files in `weights`
            "weights": "",  # the folder of LPIPS' files
            "adversarial": {
                "weight": 0.0,  # of a discriminator; .8 is usual
                "start": 0,  # first step with it
                "channels": 64,  # of its first layer
                "layers": 3,  # convolutions between the first and the last
                "learning_rate": 1e-4,  # of the discriminator
            },
            "rebuild": {
                "codes": 0,  # of a new codebook for the trained tokenizer; 0 keeps the old one
                "steps": 400,  # in which the decoder learns the new codes
                "learning_rate": 1e-4,  # of these steps
            },
            "log_every": 50,  # steps between two lines of metrics.jsonl
            "save_every": 400,  # steps between two checkpoints
            "keep": 1,  # checkpoints that stay
        }
    )

    c.diffusion = ml_collections.ConfigDict(
        {
            "steps": 100,  # T
            "schedule": "linear",  # a name in MAKERS: udd_jax/diffusion/schedules.py
            "image_schedule": "",  # "" is `schedule`
            "text_schedule": "",  # "" is `schedule`
            "schedule_options": {},  # arguments of that function
        }
    )

    c.model = ml_collections.ConfigDict(
        {
            "kind": "diffusion",  # or "autoregressive", the baseline: one token a call
            "layers": 4,  # blocks
            "width": 128,  # D
            "heads": 4,  # H, of each attention
            "mlp_ratio": 2,  # width of an MLP / D
            "stack": "plain",  # or "long_skips", "encoder_decoder": networks/stacks.py
            "decoder_layers": 0,  # of "encoder_decoder": so many of the layers are the decoder
            "attention": "mutual",  # or "self": self-attention over all, alone
            "block_attention": False,  # True: compute given modalities once a chain, not each step
            "absent": "noise",  # what a task leaves out; or "left_out", not seen and not computed
            "time": "per_modality",  # or "shared", one time for all, as published
            "time_table": "tied",  # one for all norms; or "untied", one each; or "sinusoidal"
            "given_vector": True,  # a learned vector is added at given positions
            "mutual_gain": 0.1,  # first value of learned gains of mutual attention; 0: no gains
            "rotary": True,  # rotary positions, in addition to the learned ones
            "concentrated": False,  # True: a masked text token is seen by itself only (DDCap)
            "length_head": False,  # True: a head for the length of a caption; see train.length
            "mask_padding": False,  # True: attention ignores the padding of given texts
            "qk_norm": True,  # queries and keys are normalised
            "activation": "relu",  # of the MLPs; or "gelu"
            "rezero": 1.0,  # first value of the scalar that multiplies all logits
            "implementation": "flat",  # of attention; or "xla", "cudnn" (GPU), "fused" (TPU)
            "unroll": 4,  # blocks in one iteration of the compiled loop; more is faster on CPUs
            "remat": "none",  # computed again in the backward pass: "none", "dots" or "full"
            "dtype": "float32",  # of the network; or "bfloat16"
        }
    )

    c.train = ml_collections.ConfigDict(
        {
            "steps": 5000,  # of the training
            "batch_size": 64,  # pairs of a step
            # So many first steps, at most two thirds, have the loss of the autoregressive baseline,
            # on the same weights; none from a finished run (benchmarks/promise.md).
            "prefix_steps": 0,
            "prefix_share": 0.0,  # of the later steps that keep that loss
            "optimiser": "muon",  # or "adamw"
            "learning_rate": 4e-3,  # the largest
            "warmup": 150,  # steps until that
            "decay": "linear",  # or "cosine"
            "final_rate": 0.05,  # last learning rate / learning_rate
            "beta1": 0.9,  # of AdamW, and of Muon's vectors
            "beta2": 0.98,  # of AdamW, and of Muon's vectors
            "weight_decay": 0.02,  # of matrices and embeddings; with Muon of everything
            "clip": 5.0,  # largest global norm of the gradient
            "ema": 0.995,  # decay of the averaged weights
            # "" is that of model.kind; "distilled": a student of the run `init_from`.
            "loss": "",
            # 1 + w, the guidance of that teacher for each modality; 1 is without.
            "teacher_guidance": {"image": 1.0, "text": 1.0},
            # The bound of T steps; or "continuous", for schedules that only mask.
            "objective": "discrete",
            # r of low-rank adapters for the run `init_from` (training/adapters.py); 0 trains all.
            "adapters": {"rank": 0},
            "auxiliary": 0.2,  # lambda, the weight of -log p(x_0 | x_t)
            # Weights of terms that contrast x_0 with wrong ones (training/contrastive.py).
            "contrastive": {
                "step_intra": 0.0,  # the bound's term; the sample's own tokens in another order
                "step_inter": 0.0,  # the bound's term; another sample's tokens
                "sample_intra": 0.0,  # -log p(x_0 | x_t); its own tokens in another order
                "sample_inter": 0.0,  # -log p(x_0 | x_t); another sample's tokens
                "negatives": 4,  # wrong ones for each sample
                "form": "bounded",  # or "released", for weights such as 5e-5
            },
            "length": 0.0,  # weight of -log p(length of the caption | image); needs the head
            "matching": 0.0,  # weight of finding the other half of a pair (training/matching.py)
            # A decoder that is trained with the diffusion (training/end_to_end.py).
            "end_to_end": {
                "weight": 0.0,  # of the L1 of its pictures; 1 is usual
                "until": 0.3,  # largest time, as a share of T
            },
            "round_trip": 0.0,  # weight of the way there and back (training/round_trip.py)
            # Share of given texts whose words stand at random places among masks, for labels as
            # captions (`training/loss.py`: mask-based text generation of Diffsound).
            "scattered_text": 0.0,
            "pad_weight": 1.0,  # weight of padding tokens in the loss
            "image_weight": 1.0,  # of image tokens; less if an image has far more than its text
            "mixture": {  # weights of the tasks in a batch
                "pair": 0.25,  # image and text, at one time
                "t2i": 0.2,  # the image, given the text
                "i2t": 0.4,  # the text, given the image
                "infill": 0.11,  # parts of both
                "image": 0.02,  # the image, without a text
                "text": 0.02,  # the text, without an image
            },
            "accumulate": 1,  # parts of a batch that are processed one after the other
            "held_out": 0,  # held-out pairs; their bound is logged, and its best checkpoint kept
            "log_every": 50,  # steps between two lines of metrics.jsonl
            "save_every": 500,  # steps between two checkpoints
            "keep": 2,  # checkpoints that stay
            "fan_in": True,  # initialisation by fan-in; False: the published N(0, 0.02^2)
        }
    )

    # A dual encoder of images and texts (training/train_dual_encoder.py): match scores, a scorer,
    # ranks. It may be trained later, too, by the same command.
    c.dual_encoder = ml_collections.ConfigDict(
        {
            "steps": 0,  # 0 trains none; on `shapes` 2500
            "file": "",  # a finished one with the tokenizers of this run; "" trains one
            "width": 64,  # D, of a tower and of its vectors
            "layers": 2,  # blocks of a tower
            "heads": 2,  # of each attention
            "patch": 1,  # codes at the side of a region of the image; it divides the grid
            "batch_size": 96,  # pairs of a step; each has all others of its half as wrong ones
            "group": 8,  # pairs of a batch whose captions have most words in common; 1: random ones
            "learning_rate": 1e-2,  # the largest, of Muon
            "warmup": 100,  # steps until that
            "log_every": 50,  # steps between two lines of metrics.jsonl
            "save_every": 500,  # steps between two checkpoints
        }
    )

    c.sample = ml_collections.ConfigDict(
        {
            "sampler": "first_hitting",  # order of reveal: docs/method.md, section 7
            "steps": 25,  # network calls, for samplers with a fixed number of them
            "guidance": 1.0,  # s = 1 + w; 1 is off
            "guidance_schedule": "constant",  # or "linear", "interval"
            "guidance_interval": (0.0, 1.0),  # shares of T, for "interval"
            "temperature": 1.15,  # with top_r: more accurate samples with the same variety
            "top_r": 0.75,  # keeps the likeliest classes up to this mass; 1 is off
            "top_k": 0,  # keeps so many classes; 0 is off
            # For some samplers only (udd_jax/sampling/settings.py).
            "confidence": "probability",  # maskgit and best_first; or "margin", "entropy"
            "noise": 2.0,  # maskgit: temperature of the noise at the start
            "purity": 1.0,  # purity: how much the purity sharpens p
            "group": 1,  # best_first and first_hitting: positions revealed in a call
            "threshold": 0.9,  # threshold: reveals positions with a probability above it
            "bound": 0.1,  # entropy_bounded: nats revealed in a call
            "eta": 0.1,  # remdm_cap and remdm_rescale: largest probability of masking again
            "correct": 0,  # ancestral: tokens drawn again in each step
        }
    )
    # {rule: settings}, in place of those of `sample` where this rule is generated.
    c.sample_rules = ml_collections.ConfigDict()
    # Modalities to generate first; the rest is then generated from them, even if the task does not
    # name them. Not where the task gives them, or makes a single modality from nothing. For a
    # student, () means what its teacher has.
    c.begin_with = ()

    c.evaluate = ml_collections.ConfigDict(
        {
            "samples": 512,  # for each task
            "batch_size": 128,  # how many at once
            "bound_samples": 256,  # items for the bound
            "bound_times": 16,  # noise levels of each item for the bound
            "seed": 1,  # of the samples
            "split": "test",  # settings are chosen on "validation"
            "aims": True,  # compare the rates with the world's aims; False for a tiny config
            # Rules such as "sound|text" to measure as well; "every" stands for each modality from
            # each other one and from all others, and all from nothing.
            "rules": (),
            # Steps of a classifier that learns the names of stored sounds (evaluation/listening.py)
            # and then says how many of the rules' sounds are heard right; 0: none.
            "listener": 0,
            "only": "",  # "field=value" measures only items whose record has this value
            # For the suite "full".
            "weights": "",  # folder with the weights of Inception, CLIP, LPIPS
            "pictures": 0,  # generated images for Frechet distance, KID, ...; 0 is `samples`
            "retrieval": 200,  # items for retrieval
            "among": 20,  # group size of retrieval
            "round_trips": 128,  # items that go to the other modality and back
            "category": "",  # a field of the records, for the report by category
            "steering": 32,  # samples of each kind of steering, in an embedded world; 0: none
            "judged": 24,  # real and as many generated images on the sheets for judges
        }
    )

    c.mesh = ml_collections.ConfigDict(
        {
            "data": -1,  # devices over which a batch is split; -1: all that there are
            "model": 1,  # devices over which the weights are split as well
        }
    )
    return c
