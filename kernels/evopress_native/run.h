/* The entry that Python calls, for any weight format. The including file defines Job with `job_of` and `prepare`, and multiplies row blocks
   first .. last by `row_blocks` (1, 2 or 4 tokens) and, on machines with tiles, by `tile_blocks` (up to MOST tokens). */

static void blocks_of(const Job *j, int64_t first, int64_t last) {
#if TILES
    if (j->tokens >= LEAST_TILE_TOKENS) { tile_blocks(j, first, last); return; }
#endif
    for (int64_t t = 0; t < j->tokens;) {
        int64_t left = j->tokens - t;
        if (left >= 4) { row_blocks(j, first, last, t, 4); t += 4; }
        else if (left >= 2) { row_blocks(j, first, last, t, 2); t += 2; }
        else { row_blocks(j, first, last, t, 1); t += 1; }
    }
}

/* y = x Wᵀ. x: tokens × columns, y: tokens × rows, both without gaps. Returns 1 where no memory is left. */
int run(const uint8_t *data, const X *x, X *y, int64_t tokens, int threads) {
    Job j = job_of(data);
    const Form *f = j.form;
    int64_t blocks = (f->rows + BLOCK - 1) / BLOCK;
    if (threads > blocks) threads = (int)blocks;
#if TILES
    if (tokens > 2 * MOST) return run_many(data, x, y, tokens, threads);
#endif
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
