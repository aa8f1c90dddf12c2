/* x Wᵀ for grouped integer weights: W[r, c] = (code - zero) * scale, one scale and zero a row and group. See integers.py for the layout.

   Codes become floating point without a conversion: `expand` (generated) moves the BITS of a code into the mantissa of a bfloat16 whose
   value is then BIAS + code (8 bits: two nibbles). T tokens, C columns in, G groups, lane = row.

   Four engines. TILES: the expanded words are rows of an AMX B tile as they lie, x is the A tile. QUICK_DOT: the expanded words meet pairs
   of x in bfloat16 dot products. For a few bfloat16 tokens elsewhere: codes masked into float32 where they lie and multiply-added, since
   there a dot product takes one port twice. For float32 activations: the zero is subtracted before the multiply, so that nothing is lost. */

typedef struct {
    const Form *form;
    const uint8_t *codes, *zeros;
    const uint16_t *scales;
    const void *x;       /* T rows of groups*padded columns: bfloat16 for tiles and quick dot products, float32 otherwise */
    const float *sums;   /* T rows of G: sum of x over a group */
    const float *biased; /* the same of x times the bias of its column */
    int64_t stride;      /* columns a row of x */
    X *y;
    int64_t tokens;
} Job;

static Job job_of(const uint8_t *data) {
    const Form *f = (const Form *)data;
    return (Job){.form = f, .codes = data + sizeof(Form), .zeros = data + f->second, .scales = (const uint16_t *)(data + f->first)};
}

#if TILES
#define SUMS 4   /* tiles of sums in flight: a group is finished so many groups later, when its products are long done */
#define BEHIND 4 /* steps between the stores of a B tile and its load, which waits for the stores to reach the cache */

typedef struct {
    const Job *j;
    int64_t block, groups, steps; /* steps a group */
    uint16_t *b;                  /* ring of 2 * BEHIND steps */
    float *out;                   /* one tile */
    VF *total;
} Tiles;

INLINE void expand_step(const uint8_t *p, uint16_t *b) {
    UNROLL for (int u = 0; u < STEP / COLUMNS; u++) {
        VI v[PARTS * CODES];
        _mm_prefetch((const char *)(p + AHEAD + u * 64 * WORDS), _MM_HINT_T0);
        expand(p + u * 64 * WORDS, v);
        UNROLL for (int k = 0; k < CODES; k++)
            UNROLL for (int part = 0; part < PARTS; part++)
                _mm512_store_si512(b + part * 512 + (u * CODES + k) * 32, v[k * PARTS + part]);
    }
}

INLINE void settle(const Tiles *s, int64_t q) {
    const Job *j = s->j;
    int64_t at = (s->block * s->groups + q) * BLOCK;
    VF scale = FROM_HALF(j->scales + at), z = ADD(FROM_BYTES(j->zeros + at), SPLAT(BIAS));
    for (int t = 0; t < j->tokens; t++)
        s->total[t] = FMA(scale, FNMA(z, SPLAT(j->sums[t * s->groups + q]), LOADF(s->out + t * 16)), s->total[t]);
}

/* Tile numbers are part of the instruction, so each is a case of its own. */
#define MULTIPLY(C)                                                                                                                     \
    if (fresh) {                                                                                                                       \
        if (q >= SUMS) { _tile_stored(C, s->out, 64); settle(s, q - SUMS); }                                                           \
        _tile_zero(C);                                                                                                                 \
    }                                                                                                                                  \
    _tile_loadd(0, x, s->j->stride * 2);                                                                                               \
    _tile_loadd(1, b, 64);                                                                                                             \
    _tile_dpbf16ps(C, 0, 1);                                                                                                           \
    if (PARTS == 2) { _tile_loadd(2, b + 512, 64); _tile_dpbf16ps(C, 0, 2); }
#define LAST(C) _tile_stored(C, s->out, 64); settle(s, q)

INLINE void tile_step(const Tiles *s, int64_t step, int64_t q, int fresh) {
    const uint16_t *x = (const uint16_t *)s->j->x + step * STEP, *b = s->b + step % (2 * BEHIND) * (512 * PARTS);
    switch (q % SUMS) {
    case 0: MULTIPLY(4) break;
    case 1: MULTIPLY(5) break;
    case 2: MULTIPLY(6) break;
    default: MULTIPLY(7) break;
    }
}

static void tile_blocks(const Job *j, int64_t first, int64_t last) {
    const Form *f = j->form;
    _Alignas(64) uint16_t b[2 * BEHIND * 512 * PARTS];
    _Alignas(64) float out[256];
    VF total[MOST];
    const int64_t a_group = f->padded / STEP, all = f->groups * a_group;
    const int64_t bytes = 64 * WORDS * (STEP / COLUMNS);
    configure((int)j->tokens);
    for (int64_t block = first; block < last; block++) {
        const uint8_t *p = j->codes + block * all * bytes;
        Tiles tiles = {j, block, f->groups, a_group, b, out, total}, *s = &tiles;
        for (int t = 0; t < j->tokens; t++) total[t] = ZERO();
        int64_t q = 0, within = 0;
        for (int64_t step = 0; step < all + BEHIND; step++) {
            if (step < all) expand_step(p + step * bytes, b + step % (2 * BEHIND) * (512 * PARTS));
            if (step < BEHIND) continue;
            tile_step(s, step - BEHIND, q, within == 0);
            if (++within == a_group) { within = 0; q++; }
        }
        for (q = f->groups > SUMS ? f->groups - SUMS : 0; q < f->groups; q++)
            switch (q % SUMS) {
            case 0: LAST(4); break;
            case 1: LAST(5); break;
            case 2: LAST(6); break;
            default: LAST(7); break;
            }
        for (int t = 0; t < j->tokens; t++) put_block(f, j->y, t, block, total + t);
    }
    _tile_release();
}
#endif

#if QUICK_DOT
INLINE void row_blocks(const Job *j, int64_t first, int64_t last, int64_t token, const int tokens) {
    const Form *f = j->form;
    const int chains = tokens == 1 ? 8 : tokens == 2 ? 4 : 2; /* sums enough to hide the latency of a dot product */
    const uint8_t *p = j->codes + first * (f->groups * f->padded * (BLOCK * BITS / 8));
    for (int64_t block = first; block < last; block++) {
        const uint32_t *x = (const uint32_t *)((const uint16_t *)j->x + token * j->stride); /* pairs of columns */
        VF total[4];
        UNROLL for (int t = 0; t < tokens; t++) total[t] = ZERO();
        for (int64_t q = 0; q < f->groups; q++) {
            VF sum[8];
            UNROLL for (int i = 0; i < tokens * chains; i++) sum[i] = ZERO();
            for (int64_t c = 0; c < f->padded; c += STEP)
                UNROLL for (int u = 0; u < STEP / COLUMNS; u++, p += 64 * WORDS, x += CODES) {
                    VI v[PARTS * CODES];
                    UNROLL for (int w = 0; w < WORDS; w++) _mm_prefetch((const char *)(p + AHEAD + 64 * w), _MM_HINT_T0);
                    expand(p, v);
                    UNROLL for (int k = 0; k < CODES; k++)
                        UNROLL for (int t = 0; t < tokens; t++) {
                            __m512bh two = (__m512bh)_mm512_set1_epi32((int)x[t * j->stride / 2 + k]);
                            UNROLL for (int part = 0; part < PARTS; part++) {
                                int i = t * chains + ((u * CODES + k) * PARTS + part) % chains;
                                sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)v[k * PARTS + part], two);
                            }
                        }
                }
            int64_t at = (block * f->groups + q) * BLOCK;
            VF scale = FROM_HALF(j->scales + at), z = ADD(FROM_BYTES(j->zeros + at), SPLAT(BIAS));
            UNROLL for (int t = 0; t < tokens; t++) {
                VF dot = sum[t * chains];
                UNROLL for (int i = 1; i < chains; i++) dot = ADD(dot, sum[t * chains + i]);
                total[t] = FMA(scale, FNMA(z, SPLAT(j->sums[(token + t) * f->groups + q]), dot), total[t]);
            }
        }
        UNROLL for (int t = 0; t < tokens; t++) put_block(f, j->y, token + t, block, total + t);
    }
}
#elif X_BFLOAT
/* bias + code as float32 wherever the code lies in its word (see words.py); the sums of bias * x and of zero * x are taken off per group. */
INLINE void row_blocks(const Job *j, int64_t first, int64_t last, int64_t token, const int tokens) {
    const Form *f = j->form;
    const float *rows_of_x = (const float *)j->x + token * j->stride;
    const int chains = tokens == 1 ? 8 : tokens == 2 ? 4 : 2; /* sums enough to hide the latency of a multiply-add */
    for (int64_t block = first; block < last; block++) {
        const uint8_t *p = j->codes + block * (f->groups * f->padded * (BLOCK * BITS / 8));
        VF total[4][HALVES];
        UNROLL for (int t = 0; t < tokens; t++) UNROLL for (int h = 0; h < HALVES; h++) total[t][h] = ZERO();
        for (int64_t q = 0; q < f->groups; q++) {
            int64_t at = (block * f->groups + q) * BLOCK;
            UNROLL for (int h = 0; h < HALVES; h++) {
                VF sum[8];
                UNROLL for (int i = 0; i < tokens * chains; i++) sum[i] = ZERO();
                const float *x = rows_of_x + q * f->padded;
                const uint8_t *own = p + h * 32;
                for (int64_t c = 0; c < f->padded; c += COLUMNS, own += 64 * WORDS) {
                    UNROLL for (int w = 0; w < WORDS; w++) _mm_prefetch((const char *)(own + AHEAD + 64 * w), _MM_HINT_T0);
#define ADD_COLUMN(n, k, value)                                                                                                         \
    {                                                                                                                                  \
        VF v = value;                                                                                                                  \
        UNROLL for (int t = 0; t < tokens; t++)                                                                                        \
            sum[t * chains + n % chains] = FMA(v, SPLAT(x[t * j->stride + c + k]), sum[t * chains + n % chains]);                      \
    }
                    STRAIGHTEN(own, ADD_COLUMN)
                }
                VF scale = FROM_HALF(j->scales + at + h * LANES), z = FROM_BYTES(j->zeros + at + h * LANES);
                UNROLL for (int t = 0; t < tokens; t++) {
                    VF dot = sum[t * chains];
                    UNROLL for (int i = 1; i < chains; i++) dot = ADD(dot, sum[t * chains + i]);
                    dot = SUB(dot, SPLAT(j->biased[(token + t) * f->groups + q]));
                    total[t][h] = FMA(scale, FNMA(z, SPLAT(j->sums[(token + t) * f->groups + q]), dot), total[t][h]);
                }
            }
            p += f->padded * (BLOCK * BITS / 8);
        }
        UNROLL for (int t = 0; t < tokens; t++) put_block(f, j->y, token + t, block, total[t]);
    }
}
#else
INLINE void row_blocks(const Job *j, int64_t first, int64_t last, int64_t token, const int tokens) {
    const Form *f = j->form;
    const float *rows_of_x = (const float *)j->x + token * j->stride;
    for (int64_t block = first; block < last; block++) {
        const uint8_t *p = j->codes + block * (f->groups * f->padded * (BLOCK * BITS / 8));
        VF total[4][HALVES];
        UNROLL for (int t = 0; t < tokens; t++) UNROLL for (int h = 0; h < HALVES; h++) total[t][h] = ZERO();
        for (int64_t q = 0; q < f->groups; q++) {
            int64_t at = (block * f->groups + q) * BLOCK;
            VF z[HALVES], sum[4][HALVES][2];
            UNROLL for (int h = 0; h < HALVES; h++) {
                z[h] = ADD(FROM_BYTES(j->zeros + at + h * LANES), SPLAT(BIAS_OF_LOW));
                UNROLL for (int t = 0; t < tokens; t++) sum[t][h][0] = sum[t][h][1] = ZERO();
            }
            const float *x = rows_of_x + q * f->padded;
            for (int64_t c = 0; c < f->padded; c += COLUMNS) {
                _mm_prefetch((const char *)(p + AHEAD), _MM_HINT_T0);
                UNROLL for (int h = 0; h < HALVES; h++) {
                    VI v[PARTS * CODES];
                    expand(p + h * 32, v);
                    UNROLL for (int k = 0; k < CODES; k++) {
                        VF even = SUB(EVEN(v[k * PARTS]), z[h]), odd = SUB(ODD(v[k * PARTS]), z[h]);
#if PARTS == 2
                        even = ADD(even, SUB(EVEN(v[k * PARTS + 1]), SPLAT(BIAS_OF_HIGH)));
                        odd = ADD(odd, SUB(ODD(v[k * PARTS + 1]), SPLAT(BIAS_OF_HIGH)));
#endif
                        UNROLL for (int t = 0; t < tokens; t++) {
                            const float *two = x + t * j->stride + c + 2 * k;
                            sum[t][h][0] = FMA(even, SPLAT(two[0]), sum[t][h][0]);
                            sum[t][h][1] = FMA(odd, SPLAT(two[1]), sum[t][h][1]);
                        }
                    }
                }
                p += 64 * WORDS;
            }
            UNROLL for (int h = 0; h < HALVES; h++) {
                VF scale = FROM_HALF(j->scales + at + h * LANES);
                UNROLL for (int t = 0; t < tokens; t++)
                    total[t][h] = FMA(scale, ADD(sum[t][h][0], sum[t][h][1]), total[t][h]);
            }
        }
        UNROLL for (int t = 0; t < tokens; t++) put_block(f, j->y, token + t, block, total[t]);
    }
}
#endif

/* Lay x as the engines want it: groups padded with zeros, in float32 unless pairs of it are taken, and summed by group. 1 without memory. */
#if TILES || QUICK_DOT
static int prepare_pairs(Job *j, const X *x) {
    const Form *f = j->form;
    int plain = f->padded == f->group;
    size_t sums = (size_t)(j->tokens * f->groups + 15) / 16 * 64;
    float *sum = scratch(sums + (plain ? 0 : (size_t)(j->tokens * j->stride) * 2));
    if (!sum) return 1;
    uint16_t *copy = (uint16_t *)((uint8_t *)sum + sums);
    for (int64_t t = 0; t < j->tokens; t++)
        for (int64_t q = 0; q < f->groups; q++) {
            const uint16_t *from = x + t * f->columns + q * f->group;
            if (!plain) {
                uint16_t *to = copy + t * j->stride + q * f->padded;
                memcpy(to, from, (size_t)f->group * 2);
                memset(to + f->group, 0, (size_t)(f->padded - f->group) * 2);
                from = to;
            }
            VF total = ZERO();
            __m512bh one = (__m512bh)_mm512_set1_epi16(0x3F80);
            for (int64_t c = 0; c < f->padded; c += 32) total = _mm512_dpbf16_ps(total, (__m512bh)LOAD(from + c), one);
            sum[t * f->groups + q] = _mm512_reduce_add_ps(total);
        }
    j->sums = sum;
    j->x = plain ? x : copy;
    return 0;
}
#endif

static int prepare(Job *j, const X *x) {
    const Form *f = j->form;
    j->stride = f->groups * f->padded;
#if TILES
    if (j->tokens >= LEAST_TILE_TOKENS) return prepare_pairs(j, x);
#endif
#if QUICK_DOT
    return prepare_pairs(j, x);
#else
    size_t all = (size_t)(j->tokens * j->stride), groups = (size_t)(j->tokens * f->groups);
    float *copy = scratch((all + 2 * groups) * 4), *sums = copy + all, *biased = sums + groups;
    if (!copy) return 1;
    for (int64_t t = 0; t < j->tokens; t++)
        for (int64_t q = 0; q < f->groups; q++) {
            const X *from = x + t * f->columns + q * f->group;
            float *to = copy + t * j->stride + q * f->padded;
            for (int64_t c = 0; c < f->group; c++) to[c] = READ(from[c]);
            for (int64_t c = f->group; c < f->padded; c++) to[c] = 0;
#if X_BFLOAT
            double sum = 0, bias = 0;
            for (int64_t c = 0; c < f->padded; c += COLUMNS)
                for (int64_t k = 0; k < COLUMNS; k++) {
                    sum += to[c + k];
                    bias += (double)bias_of[k] * to[c + k];
                }
            sums[t * f->groups + q] = (float)sum;
            biased[t * f->groups + q] = (float)bias;
#endif
        }
    j->x = copy;
    j->sums = sums;
    j->biased = biased;
    return 0;
#endif
}

#if TILES
/* (v - zero) * scale of two columns a lane, rounded to bfloat16 (halves up). */
INLINE VI dense_pair(VF even, VF odd) {
    VI low = _mm512_add_epi32(_mm512_castps_si512(even), _mm512_set1_epi32(0x8000));
    VI high = _mm512_add_epi32(_mm512_castps_si512(odd), _mm512_set1_epi32(0x8000));
    return _mm512_ternarylogic_epi32(_mm512_srli_epi32(low, 16), high, _mm512_set1_epi32((int)0xFFFF0000), 0xF8 /* low | (high & mask) */);
}

/* B tiles of steps first .. last of one row block, 1 KiB each. */
static void dense_tiles(const Form *f, const uint8_t *data, int64_t block, int64_t first, int64_t last, uint16_t *to) {
    const int64_t a_group = f->padded / STEP, bytes = 64 * WORDS * (STEP / COLUMNS);
    const uint8_t *p = data + sizeof(Form) + (block * f->groups * a_group + first) * bytes;
    for (int64_t step = first; step < last; step++, p += bytes, to += 512) {
        int64_t at = (block * f->groups + step / a_group) * BLOCK;
        VF scale = FROM_HALF((const uint16_t *)(data + f->first) + at);
        VF shift = FNMA(ADD(FROM_BYTES(data + f->second + at), SPLAT(BIAS)), scale, ZERO());
        UNROLL for (int u = 0; u < STEP / COLUMNS; u++) {
            VI v[PARTS * CODES];
            expand(p + u * 64 * WORDS, v);
            UNROLL for (int k = 0; k < CODES; k++) {
                VF even = EVEN(v[k * PARTS]), odd = ODD(v[k * PARTS]);
#if PARTS == 2
                even = ADD(even, EVEN(v[k * PARTS + 1]));
                odd = ADD(odd, ODD(v[k * PARTS + 1]));
#endif
                VI pair = dense_pair(FMA(even, scale, shift), FMA(odd, scale, shift));
                _mm512_store_si512(to + (u * CODES + k) * 32, pair);
            }
        }
    }
}

#include "tiles.h"
#endif

#include "run.h"

/* The dense weight of row blocks first .. last, row by row: y[(r - 16 first) * columns + c]. */
void unpack(const uint8_t *data, X *y, int64_t first, int64_t last, int threads) {
    const Form *f = (const Form *)data;
    const uint8_t *zeros = data + f->second;
    const uint16_t *scales = (const uint16_t *)(data + f->first);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t block = first; block < last; block++) {
        const uint8_t *p = data + sizeof(Form) + block * (f->groups * f->padded * (BLOCK * BITS / 8));
        int count = rows_of(f, block);
        X *rows = y + (block - first) * BLOCK * f->columns;
        for (int64_t q = 0; q < f->groups; q++) {
            int64_t at = (block * f->groups + q) * BLOCK;
            for (int64_t c = 0; c < f->padded; c += COLUMNS, p += 64 * WORDS) {
                float w[COLUMNS][BLOCK];
                UNROLL for (int h = 0; h < HALVES; h++) {
                    VI v[PARTS * CODES];
                    expand(p + h * 32, v);
                    VF scale = FROM_HALF(scales + at + h * LANES), z = ADD(FROM_BYTES(zeros + at + h * LANES), SPLAT(BIAS_OF_LOW));
                    UNROLL for (int k = 0; k < CODES; k++) {
                        VF even = SUB(EVEN(v[k * PARTS]), z), odd = SUB(ODD(v[k * PARTS]), z);
#if PARTS == 2
                        even = ADD(even, SUB(EVEN(v[k * PARTS + 1]), SPLAT(BIAS_OF_HIGH)));
                        odd = ADD(odd, SUB(ODD(v[k * PARTS + 1]), SPLAT(BIAS_OF_HIGH)));
#endif
                        STOREF(w[2 * k] + h * LANES, even * scale);
                        STOREF(w[2 * k + 1] + h * LANES, odd * scale);
                    }
                }
                int64_t wide = f->group - c < COLUMNS ? f->group - c : COLUMNS;
                for (int r = 0; r < count; r++)
                    for (int64_t i = 0; i < wide; i++) rows[r * f->columns + q * f->group + c + i] = WRITE(w[i][r]);
            }
        }
    }
}
