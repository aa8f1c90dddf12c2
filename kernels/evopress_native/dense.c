/* x Wᵀ for a few tokens and a dense weight that lies row by row, as the model keeps it. The weight is read once from memory, for
   all tokens. X is the type of weight, x and y. */

#define ROWS 4   /* side by side, for two tokens or more */
#define TOKENS 4 /* for more, a row is still in the inner cache when the next ones meet it */

#if X_BFLOAT && BFLOAT_DOT
#define PER 32
#define MULTIPLY(w, x, sum) sum = _mm512_dpbf16_ps(sum, (__m512bh)(w), (__m512bh)(x))
#elif X_BFLOAT
#define PER (2 * LANES)
#define MULTIPLY(w, x, sum) sum = FMA(ODD(w), ODD(x), FMA(EVEN(w), EVEN(x), sum))
#else
#define PER LANES
#define MULTIPLY(w, x, sum) sum = FMA(AS_FLOATS(w), AS_FLOATS(x), sum)
#endif

INLINE float total(VF sum) {
    float lanes[LANES];
    STOREF(lanes, sum);
    UNROLL for (int width = LANES / 2; width; width /= 2)
        UNROLL for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

/* `own` rows side by side, so that what is loaded of x serves all of them, and 1, 2 or TOKENS tokens. */
INLINE void some(const X *weight, const X *x, X *y, int64_t rows, int64_t columns, const int own, const int tokens) {
    const int chains = own * tokens == 1 ? 8 : 1; /* sums enough to hide the latency of a product */
    const int64_t width = columns - columns % (chains * PER);
    VF sum[ROWS * TOKENS];
    UNROLL for (int i = 0; i < own * tokens * chains; i++) sum[i] = ZERO();
    int64_t c = 0;
    for (; c < width; c += chains * PER) {
        /* Behind the end of a row the next one of these rows begins, which is read already: go on where this stream will. */
        int64_t ahead = AHEAD / (int64_t)sizeof(X) + (c + AHEAD / (int64_t)sizeof(X) < columns ? 0 : (own - 1) * columns);
        UNROLL for (int i = 0; i < chains; i++) {
            UNROLL for (int r = 0; r < own; r++) {
                const X *p = weight + r * columns + c + i * PER;
                _mm_prefetch((const char *)(p + ahead), _MM_HINT_T0);
                VI w = LOAD(p);
                UNROLL for (int t = 0; t < tokens; t++)
                    MULTIPLY(w, LOAD(x + t * columns + c + i * PER), sum[(r * tokens + t) * chains + i]);
            }
        }
    }
    for (; c + PER <= columns; c += PER)
        UNROLL for (int r = 0; r < own; r++)
            UNROLL for (int t = 0; t < tokens; t++)
                MULTIPLY(LOAD(weight + r * columns + c), LOAD(x + t * columns + c), sum[(r * tokens + t) * chains]);
    if (c < columns) { /* the last columns, with zeros behind them */
        X w[PER] = {0}, v[PER] = {0};
        const size_t left = (size_t)(columns - c) * sizeof(X);
        UNROLL for (int t = 0; t < tokens; t++) {
            memcpy(v, x + t * columns + c, left);
            UNROLL for (int r = 0; r < own; r++) {
                memcpy(w, weight + r * columns + c, left);
                MULTIPLY(LOAD(w), LOAD(v), sum[(r * tokens + t) * chains]);
            }
        }
    }
    UNROLL for (int r = 0; r < own; r++)
        UNROLL for (int t = 0; t < tokens; t++) {
            VF all = sum[(r * tokens + t) * chains];
            UNROLL for (int i = 1; i < chains; i++) all = ADD(all, sum[(r * tokens + t) * chains + i]);
            y[t * rows + r] = WRITE(total(all));
        }
}

/* y = x Wᵀ. weight: rows × columns, x: tokens × columns, y: tokens × rows, all without gaps. */
void run(const X *weight, const X *x, X *y, int64_t rows, int64_t columns, int64_t tokens, int threads) {
    const int64_t blocks = rows / ROWS;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t block = 0; block <= blocks; block++) {
        const int64_t first = block * ROWS;
        int64_t t = 0;
        if (block < blocks) {
            const X *w = weight + first * columns;
            for (; t + TOKENS <= tokens; t += TOKENS) some(w, x + t * columns, y + t * rows + first, rows, columns, ROWS, TOKENS);
            for (; t + 2 <= tokens; t += 2) some(w, x + t * columns, y + t * rows + first, rows, columns, ROWS, 2);
        }
        for (int64_t r = first; r < rows && r < first + ROWS; r++)
            for (int64_t one = t; one < tokens; one++)
                some(weight + r * columns, x + one * columns, y + one * rows + r, rows, columns, 1, 1);
    }
}
