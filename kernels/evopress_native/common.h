/* What the kernels share: vector types by instruction set, bfloat16, the header of packed weights, threads. Included after the constants
   that `generate.py` writes: WIDTH (512 or 256 bits), BFLOAT_DOT, QUICK_DOT, TILES (0 or 1), X_BFLOAT (type of the activations), AHEAD
   (bytes of prefetch). A word is 64 bytes: 16 rows, each with 16 bits (integers) or a pair of columns (values), lane = row. */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")
#define BLOCK 16 /* rows side by side */
#define STEP 32  /* columns of one tile */
#define MOST 16  /* tokens a pass */

#if X_BFLOAT
typedef uint16_t X;
#else
typedef float X;
#endif

#if WIDTH == 512
#define HALVES 1
#define LANES 16
typedef __m512 VF;
typedef __m512i VI;
#define LOAD(p) _mm512_loadu_si512(p)
#define LOADF(p) _mm512_loadu_ps(p)
#define STOREF(p, v) _mm512_storeu_ps(p, v)
#define ZERO() _mm512_setzero_ps()
#define SPLAT(v) _mm512_set1_ps(v)
#define ADD(a, b) _mm512_add_ps(a, b)
#define SUB(a, b) _mm512_sub_ps(a, b)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define FNMA(a, b, c) _mm512_fnmadd_ps(a, b, c)
#define RIGHT(v, n) _mm512_srli_epi16(v, n)
#define LEFT(v, n) _mm512_slli_epi16(v, n)
#define AND(v, m) _mm512_and_si512(v, _mm512_set1_epi16((short)(m)))
#define OR(a, b) _mm512_or_si512(a, b)
#define OR_WITH(v, m) _mm512_or_si512(v, _mm512_set1_epi16((short)(m)))
#define AND_OR(v, m, o) _mm512_ternarylogic_epi32(v, _mm512_set1_epi16((short)(m)), _mm512_set1_epi16((short)(o)), 0xEA)
#define LEFT32(v, n) _mm512_slli_epi32(v, n)
#define RIGHT32(v, n) _mm512_srli_epi32(v, n)
#define AND_OR32(v, m, o) _mm512_ternarylogic_epi32(v, _mm512_set1_epi32((int)(m)), _mm512_set1_epi32((int)(o)), 0xEA)
#define AS_FLOATS(v) _mm512_castsi512_ps(v)
#define EVEN(v) _mm512_castsi512_ps(_mm512_slli_epi32(v, 16))
#define ODD(v) _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32((int)0xFFFF0000)))
#define FROM_HALF(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define FROM_BYTES(p) _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#else
#define HALVES 2
#define LANES 8
typedef __m256 VF;
typedef __m256i VI;
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define LOADF(p) _mm256_loadu_ps(p)
#define STOREF(p, v) _mm256_storeu_ps(p, v)
#define ZERO() _mm256_setzero_ps()
#define SPLAT(v) _mm256_set1_ps(v)
#define ADD(a, b) _mm256_add_ps(a, b)
#define SUB(a, b) _mm256_sub_ps(a, b)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define FNMA(a, b, c) _mm256_fnmadd_ps(a, b, c)
#define RIGHT(v, n) _mm256_srli_epi16(v, n)
#define LEFT(v, n) _mm256_slli_epi16(v, n)
#define AND(v, m) _mm256_and_si256(v, _mm256_set1_epi16((short)(m)))
#define OR(a, b) _mm256_or_si256(a, b)
#define OR_WITH(v, m) _mm256_or_si256(v, _mm256_set1_epi16((short)(m)))
#define AND_OR(v, m, o) OR_WITH(AND(v, m), o)
#define LEFT32(v, n) _mm256_slli_epi32(v, n)
#define RIGHT32(v, n) _mm256_srli_epi32(v, n)
#define AND_OR32(v, m, o) _mm256_or_si256(_mm256_and_si256(v, _mm256_set1_epi32((int)(m))), _mm256_set1_epi32((int)(o)))
#define AS_FLOATS(v) _mm256_castsi256_ps(v)
#define EVEN(v) _mm256_castsi256_ps(_mm256_slli_epi32(v, 16))
#define ODD(v) _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xFFFF0000)))
#define FROM_HALF(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define FROM_BYTES(p) _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
#endif

/* First bytes of every packed weight. group: columns a group as the format says; padded: as they lie here, a multiple of 32. */
typedef struct {
    int64_t rows, columns, group, padded, groups, first, second, third;
} Form;

INLINE float widen(uint16_t v) {
    union { uint32_t i; float f; } u = {(uint32_t)v << 16};
    return u.f;
}

/* To bfloat16, nearest and ties to even; NaN stays NaN. */
INLINE uint16_t narrow(float v) {
    union { float f; uint32_t i; } u = {v};
    if ((u.i & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)((u.i >> 16) | 0x40);
    return (uint16_t)((u.i + 0x7FFF + ((u.i >> 16) & 1)) >> 16);
}

#if X_BFLOAT
#define READ(v) widen(v)
#define WRITE(v) narrow(v)
#else
#define READ(v) (v)
#define WRITE(v) (v)
#endif

/* One row block of a result: `count` of the 16 lanes. */
INLINE void put(X *y, const VF value[HALVES], int count) {
#if X_BFLOAT && BFLOAT_DOT
    __m256i out = (__m256i)_mm512_cvtneps_pbh(value[0]);
    if (count == BLOCK) _mm256_storeu_si256((__m256i *)y, out);
    else _mm256_mask_storeu_epi16(y, (__mmask16)((1u << count) - 1), out);
#else
    float out[BLOCK];
    UNROLL for (int h = 0; h < HALVES; h++) STOREF(out + h * LANES, value[h]);
    for (int r = 0; r < count; r++) y[r] = WRITE(out[r]);
#endif
}

/* Rows of a block that are there. */
INLINE int rows_of(const Form *f, int64_t block) {
    int64_t left = f->rows - block * BLOCK;
    return left < BLOCK ? (int)left : BLOCK;
}

INLINE void put_block(const Form *f, X *y, int64_t token, int64_t block, const VF value[HALVES]) {
    put(y + token * f->rows + block * BLOCK, value, rows_of(f, block));
}

/* Memory that a thread keeps between calls, so that a call of microseconds does not allocate. 64-byte aligned; NULL when there is none. */
static void *scratch(size_t bytes) {
    static __thread void *kept;
    static __thread size_t size;
    if (size < bytes) {
        free(kept);
        size = (bytes + 4095) / 4096 * 4096;
        kept = aligned_alloc(64, size);
        if (!kept) size = 0;
    }
    return kept;
}

#if TILES
typedef struct __attribute__((packed)) {
    uint8_t palette, start, reserved[14];
    uint16_t bytes_a_row[16];
    uint8_t rows[16];
} TileConfig;

INLINE void configure(int tokens) {
    TileConfig c;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (int i = 0; i < 8; i++) {
        c.bytes_a_row[i] = 64;
        c.rows[i] = (i == 1 || i == 2) ? 16 : (uint8_t)tokens;
    }
    _tile_loadconfig(&c);
}
#endif
