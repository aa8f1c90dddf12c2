/* x Wᵀ for grouped integer weights: W[r, c] = (code - zero) * scale, one scale and zero a row and group. See integers.py for the layout.

   Codes become floating point without a conversion: `expand` (generated) moves the BITS of a code into the mantissa of a bfloat16 whose
   value is then BIAS + code (8 bits: two nibbles). T tokens, C columns in, G groups, lane = row.

   Three engines. TILES: the expanded words are rows of an AMX B tile as they lie, x is the A tile. BFLOAT_DOT: vdpbf16ps of two columns.
   Else two fused multiply-adds in float32, from which the zero is subtracted beforehand, so that float32 activations lose nothing. */

#define MOST 16 /* tokens a pass */

typedef struct {
    const Form *form;
    const uint8_t *codes, *zeros;
    const uint16_t *scales;
    const void *x;     /* T rows of groups*padded columns: bfloat16 for tiles and dot, float32 otherwise */
    const float *sums; /* T rows of G: sum of x over a group */
    int64_t stride;    /* columns a row of x */
    X *y;
    int64_t tokens;
} Job;

#if TILES || (BFLOAT_DOT && X_BFLOAT)
INLINE void finish(const Job *j, int64_t at, int64_t q, int t, VF dot, VF *total) {
    VF z = ADD(FROM_BYTES(j->zeros + at), SPLAT(BIAS));
    *total = FMA(FROM_HALF(j->scales + at), FNMA(z, SPLAT(j->sums[t * j->form->groups + q]), dot), *total);
}
#endif

#if TILES
#define RING 4 /* tiles of sums in flight: a group is finished so many groups later, when its products are long done */

INLINE void step(const uint8_t *p, uint16_t *b) {
    VI v[PARTS * CODES];
    UNROLL for (int u = 0; u < 32 / COLUMNS; u++) {
        _mm_prefetch((const char *)(p + AHEAD), _MM_HINT_T0);
        expand(p + u * 64 * WORDS, v);
        UNROLL for (int k = 0; k < CODES; k++)
            UNROLL for (int part = 0; part < PARTS; part++)
                _mm512_store_si512(b + part * 512 + (u * CODES + k) * 32, v[k * PARTS + part]);
    }
}

#define GROUP(C, slot)                                                                                                                  \
    do {                                                                                                                               \
        if (q + slot >= RING) settle_##slot(&s, q + slot - RING);                                                                      \
        _tile_zero(C);                                                                                                                 \
        for (int64_t c = 0; c < f->padded; c += 32) {                                                                                  \
            uint16_t *b = s.b + (turn & 3) * (512 * PARTS);                                                                            \
            step(p, b);                                                                                                                \
            p += 64 * WORDS * (32 / COLUMNS);                                                                                          \
            const uint16_t *x = (const uint16_t *)j->x + (q + slot) * f->padded + c;                                                   \
            if (turn & 1) {                                                                                                            \
                _tile_loadd(1, x, j->stride * 2);                                                                                      \
                _tile_loadd(3, b, 64);                                                                                                 \
                _tile_dpbf16ps(C, 1, 3);                                                                                               \
                if (PARTS == 2) { _tile_loadd(2, b + 512, 64); _tile_dpbf16ps(C, 1, 2); }                                              \
            } else {                                                                                                                   \
                _tile_loadd(0, x, j->stride * 2);                                                                                      \
                _tile_loadd(2, b, 64);                                                                                                 \
                _tile_dpbf16ps(C, 0, 2);                                                                                               \
                if (PARTS == 2) { _tile_loadd(3, b + 512, 64); _tile_dpbf16ps(C, 0, 3); }                                              \
            }                                                                                                                          \
            turn++;                                                                                                                    \
        }                                                                                                                              \
    } while (0)

typedef struct {
    const Job *j;
    int64_t block;
    uint16_t *b;
    float *out;
    VF *total;
} State;

INLINE void settle(const State *s, int64_t q, const float *out) {
    const Job *j = s->j;
    int64_t at = (s->block * j->form->groups + q) * BLOCK;
    VF scale = FROM_HALF(j->scales + at), z = ADD(FROM_BYTES(j->zeros + at), SPLAT(BIAS));
    for (int t = 0; t < j->tokens; t++)
        s->total[t] = FMA(scale, FNMA(z, SPLAT(j->sums[t * j->form->groups + q]), LOADF(out + t * 16)), s->total[t]);
}
#define SETTLE(slot, C)                                                                                                                 \
    INLINE void settle_##slot(const State *s, int64_t q) {                                                                             \
        float *out = s->out + slot * 256;                                                                                              \
        _tile_stored(C, out, 64);                                                                                                      \
        settle(s, q, out);                                                                                                             \
    }
SETTLE(0, 4) SETTLE(1, 5) SETTLE(2, 6) SETTLE(3, 7)

static void tile_blocks(const Job *j, int64_t first, int64_t last) {
    const Form *f = j->form;
    _Alignas(64) uint16_t b[4 * 512 * PARTS];
    _Alignas(64) float out[RING * 256];
    VF total[MOST];
    configure((int)j->tokens);
    for (int64_t block = first; block < last; block++) {
        const uint8_t *p = j->codes + block * (f->groups * f->padded * (BLOCK * BITS / 8));
        State s = {j, block, b, out, total};
        for (int t = 0; t < j->tokens; t++) total[t] = ZERO();
        int turn = 0;
        int64_t q = 0;
        for (; q + RING <= f->groups; q += RING) { GROUP(4, 0); GROUP(5, 1); GROUP(6, 2); GROUP(7, 3); }
        int64_t left = f->groups - q;
        if (left > 0) GROUP(4, 0);
        if (left > 1) GROUP(5, 1);
        if (left > 2) GROUP(6, 2);
        /* What the ring still holds, oldest first: slots left .. 3 of the last whole turn, then 0 .. left - 1. */
        if (left < 1 && q >= RING) settle_0(&s, q - 4);
        if (left < 2 && q >= RING) settle_1(&s, q - 3);
        if (left < 3 && q >= RING) settle_2(&s, q - 2);
        if (q >= RING) settle_3(&s, q - 1);
        if (left > 0) settle_0(&s, q);
        if (left > 1) settle_1(&s, q + 1);
        if (left > 2) settle_2(&s, q + 2);
        int count = (int)(f->rows - block * BLOCK < BLOCK ? f->rows - block * BLOCK : BLOCK);
        for (int t = 0; t < j->tokens; t++) put(j->y + t * f->rows + block * BLOCK, total + t, count);
    }
    _tile_release();
}
#endif

#if BFLOAT_DOT && X_BFLOAT
INLINE void dot_blocks(const Job *j, int64_t first, int64_t last, const int tokens) {
    const Form *f = j->form;
    const int chains = tokens == 1 ? 4 : tokens == 2 ? 2 : 1; /* the latency of a dot is hidden by four sums */
    for (int64_t block = first; block < last; block++) {
        const uint8_t *p = j->codes + block * (f->groups * f->padded * (BLOCK * BITS / 8));
        VF total[4];
        UNROLL for (int t = 0; t < tokens; t++) total[t] = ZERO();
        for (int64_t q = 0; q < f->groups; q++) {
            VF sum[4];
            UNROLL for (int i = 0; i < tokens * chains; i++) sum[i] = ZERO();
            const uint32_t *x = (const uint32_t *)((const uint16_t *)j->x + q * f->padded);
            for (int64_t c = 0; c < f->padded; c += COLUMNS) {
                VI v[PARTS * CODES];
                _mm_prefetch((const char *)(p + AHEAD), _MM_HINT_T0);
                expand(p, v);
                p += 64 * WORDS;
                UNROLL for (int k = 0; k < CODES; k++)
                    UNROLL for (int t = 0; t < tokens; t++) {
                        __m512bh two = (__m512bh)_mm512_set1_epi32((int)x[t * j->stride / 2 + c / 2 + k]);
                        UNROLL for (int part = 0; part < PARTS; part++) {
                            int i = t * chains + (k * PARTS + part) % chains;
                            sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)v[k * PARTS + part], two);
                        }
                    }
            }
            int64_t at = (block * f->groups + q) * BLOCK;
            UNROLL for (int t = 0; t < tokens; t++) {
                VF dot = sum[t * chains];
                UNROLL for (int i = 1; i < chains; i++) dot = ADD(dot, sum[t * chains + i]);
                finish(j, at, q, t, dot, total + t);
            }
        }
        int count = (int)(f->rows - block * BLOCK < BLOCK ? f->rows - block * BLOCK : BLOCK);
        UNROLL for (int t = 0; t < tokens; t++) put(j->y + t * f->rows + block * BLOCK, total + t, count);
    }
}
#else
INLINE void dot_blocks(const Job *j, int64_t first, int64_t last, const int tokens) {
    const Form *f = j->form;
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
            const float *x = (const float *)j->x + q * f->padded;
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
        int count = (int)(f->rows - block * BLOCK < BLOCK ? f->rows - block * BLOCK : BLOCK);
        UNROLL for (int t = 0; t < tokens; t++) put(j->y + t * f->rows + block * BLOCK, total[t], count);
    }
}
#endif

static void blocks_of(const Job *j, int64_t first, int64_t last) {
#if TILES
    if (j->tokens >= LEAST_TILE_TOKENS) { tile_blocks(j, first, last); return; }
#endif
    Job part = *j;
    for (int64_t t = 0; t < j->tokens; t += part.tokens) {
        int64_t left = j->tokens - t;
        part.tokens = left >= 4 ? 4 : left >= 2 ? 2 : 1;
#if X_BFLOAT && BFLOAT_DOT
        part.x = (const uint16_t *)j->x + t * j->stride;
        part.sums = j->sums + t * j->form->groups;
#else
        part.x = (const float *)j->x + t * j->stride;
#endif
        part.y = j->y + t * j->form->rows;
        if (part.tokens == 4) dot_blocks(&part, first, last, 4);
        else if (part.tokens == 2) dot_blocks(&part, first, last, 2);
        else dot_blocks(&part, first, last, 1);
    }
}

/* Lay x as the engines want it: groups padded with zeros, summed where the zeros of the weight are applied afterwards. */
static int prepare(Job *j, const X *x) {
    const Form *f = j->form;
    int64_t wide = f->groups * f->padded;
    j->stride = wide;
#if TILES || (BFLOAT_DOT && X_BFLOAT)
    int plain = f->padded == f->group;
    size_t sums = (size_t)(j->tokens * f->groups + 15) / 16 * 64;
    float *sum = scratch(sums + (plain ? 0 : (size_t)(j->tokens * wide) * 2));
    if (!sum) return 1;
    uint16_t *copy = (uint16_t *)((uint8_t *)sum + sums);
    for (int64_t t = 0; t < j->tokens; t++)
        for (int64_t q = 0; q < f->groups; q++) {
            const uint16_t *from = x + t * f->columns + q * f->group;
            if (!plain) {
                uint16_t *to = copy + t * wide + q * f->padded;
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
#else
    float *copy = scratch((size_t)(j->tokens * wide) * 4);
    if (!copy) return 1;
    for (int64_t t = 0; t < j->tokens; t++)
        for (int64_t q = 0; q < f->groups; q++) {
            const X *from = x + t * f->columns + q * f->group;
            float *to = copy + t * wide + q * f->padded;
            for (int64_t c = 0; c < f->group; c++) to[c] = READ(from[c]);
            for (int64_t c = f->group; c < f->padded; c++) to[c] = 0;
        }
    j->x = copy;
#endif
    return 0;
}

/* y = x Wᵀ. x: tokens × columns, y: tokens × rows, both without gaps. Returns 1 where no memory is left. */
int run(const uint8_t *data, const X *x, X *y, int64_t tokens, int threads) {
    const Form *f = (const Form *)data;
    Job j = {.form = f, .codes = data + sizeof(Form), .zeros = data + f->second, .scales = (const uint16_t *)(data + f->first)};
    int64_t blocks = (f->rows + BLOCK - 1) / BLOCK;
    if (threads > blocks) threads = (int)blocks;
    for (int64_t t = 0; t < tokens; t += MOST) {
        j.tokens = tokens - t < MOST ? tokens - t : MOST;
        j.y = y + t * f->rows;
        if (prepare(&j, x + t * f->columns)) return 1;
        if (threads == 1) { blocks_of(&j, 0, blocks); continue; }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int i = 0; i < threads; i++) blocks_of(&j, blocks * i / threads, blocks * (i + 1) / threads);
    }
    return 0;
}

/* The dense weight of row blocks first .. last, row by row: y[(r - 16 first) * columns + c]. */
void unpack(const uint8_t *data, X *y, int64_t first, int64_t last, int threads) {
    const Form *f = (const Form *)data;
    const uint8_t *zeros = data + f->second;
    const uint16_t *scales = (const uint16_t *)(data + f->first);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t block = first; block < last; block++) {
        const uint8_t *p = data + sizeof(Form) + block * (f->groups * f->padded * (BLOCK * BITS / 8));
        int count = (int)(f->rows - block * BLOCK < BLOCK ? f->rows - block * BLOCK : BLOCK);
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
