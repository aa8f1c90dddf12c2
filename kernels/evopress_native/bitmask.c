/* x Wᵀ for unstructured sparse weights: a bit for every weight and the values that are not zero, expanded in registers. See bitmask.py for
   the layout. T tokens, C columns in, lane = row.

   PAIRS (bfloat16 dot products or tiles): a mask of 32 bits is one word, 16 rows of two columns; values are bfloat16. Else a mask holds 16
   rows of one column and 16 of the next; values are float16 and multiplied in float32. */

#define PAIRS (BFLOAT_DOT && X_BFLOAT)

typedef struct {
    const Form *form;
    const uint32_t *masks;
    const uint16_t *values;
    const int64_t *starts; /* first value of every row block */
    const void *x;         /* T rows of `stride` columns: bfloat16 if PAIRS, else float32 */
    int64_t stride;
    X *y;
    int64_t tokens;
} Job;

static Job job_of(const uint8_t *data) {
    const Form *f = (const Form *)data;
    return (Job){.form = f, .masks = (const uint32_t *)(data + sizeof(Form)), .values = (const uint16_t *)(data + f->first),
                 .starts = (const int64_t *)(data + f->second)};
}

#if WIDTH == 512
/* Zero, newly made each time: on Zen 5 an expanding move waits for what its register held before, even where it overwrites all of it, so
   that one register used in turn makes a chain; the compiler does not know, and would reuse one zero. */
INLINE VI cleared(void) {
    VI zero;
    __asm__("vpxor %x0, %x0, %x0" : "=x"(zero));
    return zero;
}
#endif

#if PAIRS
INLINE VI spread(const uint16_t *p, uint32_t mask) { return _mm512_mask_expand_epi16(cleared(), mask, LOAD(p)); }

INLINE void row_blocks(const Job *j, int64_t first, int64_t last, int64_t token, const int tokens) {
    const Form *f = j->form;
    const int chains = tokens == 1 ? 4 : 1;
    for (int64_t block = first; block < last; block++) {
        const uint32_t *mask = j->masks + block * (f->padded / 2), *x = (const uint32_t *)((const uint16_t *)j->x + token * j->stride);
        const uint16_t *p = j->values + j->starts[block];
        VF sum[4];
        UNROLL for (int i = 0; i < tokens * chains; i++) sum[i] = ZERO();
        for (int64_t c = 0; c < f->padded / 2; c += 4) {
            _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0);
            _mm_prefetch((const char *)p + AHEAD + 64, _MM_HINT_T0);
            UNROLL for (int k = 0; k < 4; k++) {
                __m512bh v = (__m512bh)spread(p, mask[c + k]);
                p += _mm_popcnt_u32(mask[c + k]);
                UNROLL for (int t = 0; t < tokens; t++) {
                    int i = t * chains + k % chains;
                    sum[i] = _mm512_dpbf16_ps(sum[i], v, (__m512bh)_mm512_set1_epi32((int)x[t * j->stride / 2 + c + k]));
                }
            }
        }
        UNROLL for (int t = 0; t < tokens; t++) {
            VF total = sum[t * chains];
            UNROLL for (int i = 1; i < chains; i++) total = ADD(total, sum[t * chains + i]);
            put_block(f, j->y, token + t, block, &total);
        }
    }
}
#else
#if WIDTH == 512
INLINE VF spread(const uint16_t *p, uint32_t mask) { return _mm512_mask_expand_ps((VF)cleared(), (__mmask16)mask, FROM_HALF(p)); }
#else
static uint8_t places[256][8]; /* which of the compact values each of 8 lanes takes; 8 stands for none */
static __attribute__((constructor)) void fill_places(void) {
    for (int mask = 0; mask < 256; mask++)
        for (int lane = 0, taken = 0; lane < 8; lane++) places[mask][lane] = mask >> lane & 1 ? (uint8_t)taken++ : 8;
}
INLINE VF spread(const uint16_t *p, uint32_t mask) {
    VI place = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)places[mask]));
    VF value = _mm256_permutevar8x32_ps(FROM_HALF(p), place);
    return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(place, _mm256_set1_epi32(8))), value);
}
#endif

INLINE void row_blocks(const Job *j, int64_t first, int64_t last, int64_t token, const int tokens) {
    const Form *f = j->form;
    for (int64_t block = first; block < last; block++) {
        const uint32_t *mask = j->masks + block * (f->padded / 2);
        const uint16_t *p = j->values + j->starts[block];
        const float *x = (const float *)j->x + token * j->stride;
        VF sum[4][HALVES], more[4][HALVES];
        UNROLL for (int t = 0; t < tokens; t++)
            UNROLL for (int h = 0; h < HALVES; h++) sum[t][h] = more[t][h] = ZERO();
        for (int64_t c = 0; c < f->padded; c += 2) {
            _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0);
            UNROLL for (int k = 0; k < 2; k++)
                UNROLL for (int h = 0; h < HALVES; h++) {
                    uint32_t own = mask[c / 2] >> (16 * k + LANES * h) & ((1u << LANES) - 1);
                    VF v = spread(p, own);
                    p += _mm_popcnt_u32(own);
                    UNROLL for (int t = 0; t < tokens; t++)
                        *(k ? &more[t][h] : &sum[t][h]) = FMA(v, SPLAT(x[t * j->stride + c + k]), k ? more[t][h] : sum[t][h]);
                }
        }
        UNROLL for (int t = 0; t < tokens; t++) {
            UNROLL for (int h = 0; h < HALVES; h++) sum[t][h] = ADD(sum[t][h], more[t][h]);
            put_block(f, j->y, token + t, block, sum[t]);
        }
    }
}
#endif

#if TILES
/* B tiles of steps first .. last, 1 KiB each, from the values at p; returns where the next step's values begin. */
INLINE const uint16_t *spread_step(const uint32_t *mask, const uint16_t *p, uint16_t *to) {
    UNROLL for (int k = 0; k < 16; k++) {
        _mm512_store_si512(to + k * 32, spread(p, mask[k]));
        p += _mm_popcnt_u32(mask[k]);
    }
    return p;
}

static void dense_tiles(const Form *f, const uint8_t *data, int64_t block, int64_t first, int64_t last, uint16_t *to) {
    const uint32_t *mask = (const uint32_t *)(data + sizeof(Form)) + block * (f->padded / 2);
    const uint16_t *p = (const uint16_t *)(data + f->first) + ((const int64_t *)(data + f->second))[block];
    for (int64_t k = 0; k < first * 16; k++) p += _mm_popcnt_u32(mask[k]);
    for (int64_t step = first; step < last; step++, to += 512) p = spread_step(mask + step * 16, p, to);
}

#include "tiles.h"

#define BEHIND 4 /* steps between the stores of a B tile and its load, which waits for the stores to reach the cache */
#define MULTIPLY(C)                                                                                                                     \
    _tile_loadd(0, x, j->stride * 2);                                                                                                  \
    _tile_loadd(1, b, 64);                                                                                                             \
    _tile_dpbf16ps(C, 0, 1);

/* Up to 16 tokens. Four tiles of sums take turns, so that no product waits for the one before. */
static void tile_blocks(const Job *j, int64_t first, int64_t last) {
    const Form *f = j->form;
    _Alignas(64) uint16_t ring[2 * BEHIND * 512];
    _Alignas(64) float out[4][256];
    const int64_t steps = f->padded / STEP;
    configure((int)j->tokens);
    for (int64_t block = first; block < last; block++) {
        const uint32_t *mask = j->masks + block * (f->padded / 2);
        const uint16_t *p = j->values + j->starts[block];
        _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
        for (int64_t step = 0; step < steps + BEHIND; step++) {
            if (step < steps) {
                UNROLL for (int i = 0; i < 16; i++) _mm_prefetch((const char *)p + AHEAD + i * 64, _MM_HINT_T0);
                p = spread_step(mask + step * 16, p, ring + step % (2 * BEHIND) * 512);
            }
            if (step < BEHIND) continue;
            const uint16_t *x = (const uint16_t *)j->x + (step - BEHIND) * STEP, *b = ring + (step - BEHIND) % (2 * BEHIND) * 512;
            switch (step % 4) {
            case 0: MULTIPLY(4) break;
            case 1: MULTIPLY(5) break;
            case 2: MULTIPLY(6) break;
            default: MULTIPLY(7) break;
            }
        }
        _tile_stored(4, out[0], 64); _tile_stored(5, out[1], 64); _tile_stored(6, out[2], 64); _tile_stored(7, out[3], 64);
        for (int t = 0; t < j->tokens; t++) {
            VF total = ADD(ADD(LOADF(out[0] + t * 16), LOADF(out[1] + t * 16)), ADD(LOADF(out[2] + t * 16), LOADF(out[3] + t * 16)));
            put_block(f, j->y, t, block, &total);
        }
    }
    _tile_release();
}
#endif

/* Lay x as the engines want it: columns padded with zeros; float32 where they multiply in it. */
static int prepare(Job *j, const X *x) {
    const Form *f = j->form;
    j->stride = f->padded;
    j->x = x;
#if PAIRS
    if (f->padded == f->columns) return 0;
    typedef uint16_t Lane;
#define LANE(v) (v)
#else
    typedef float Lane;
#define LANE(v) READ(v)
#endif
    Lane *copy = scratch((size_t)(j->tokens * f->padded) * sizeof(Lane));
    if (!copy) return 1;
    for (int64_t t = 0; t < j->tokens; t++) {
        for (int64_t c = 0; c < f->columns; c++) copy[t * f->padded + c] = LANE(x[t * f->columns + c]);
        for (int64_t c = f->columns; c < f->padded; c++) copy[t * f->padded + c] = 0;
    }
    j->x = copy;
    return 0;
}

#include "run.h"

/* The dense weight of row blocks first .. last, row by row: y[(r - 16 first) * columns + c]. */
void unpack(const uint8_t *data, X *y, int64_t first, int64_t last, int threads) {
    const Form *f = (const Form *)data;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t block = first; block < last; block++) {
        const uint32_t *masks = (const uint32_t *)(data + sizeof(Form)) + block * (f->padded / 2);
        const uint16_t *p = (const uint16_t *)(data + f->first) + ((const int64_t *)(data + f->second))[block];
        int count = rows_of(f, block);
        X *rows = y + (block - first) * BLOCK * f->columns;
        memset(rows, 0, (size_t)(count * f->columns) * sizeof(X));
        for (int64_t c = 0; c < f->columns; c += 2)
            for (uint32_t mask = masks[c / 2]; mask; mask &= mask - 1) {
                int bit = __builtin_ctz(mask);
#if PAIRS
                rows[bit / 2 * f->columns + c + bit % 2] = *p++;
#else
                rows[bit % 16 * f->columns + c + bit / 16] = WRITE(_cvtsh_ss(*p++));
#endif
            }
    }
}
