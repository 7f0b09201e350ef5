-- title: Do the random controls look random?
-- about: One row per control, a random matrix with entries of variance 1 / hi, hi = max(rows, cols). The verdict is ok if all
--   of these hold, and off otherwise.
--   1. The mean p-values of the left and of the right vectors are within 4 standard errors of 0.5. One standard error is
--   sqrt(1 / 12 / count), as for independent uniform p-values.
--   2. No singular value lies 6 or more Tracy-Widom widths outside its Marchenko-Pastur edge. The width is the natural
--   fluctuation of extreme singular values, about 0.3 hi^(-2/3) of the upper edge for square matrices.
--   3. The variance of the entries is within 4 standard errors of 1 / hi. One standard error is sqrt(2 / (rows cols)) of
--   it for Gaussian entries, and less for uniform ones.
-- param: ensemble VARCHAR = NULL | this ensemble only (gaussian, kaiming_uniform)
-- column: rows | output features
-- column: cols | input features
-- column: ensemble | distribution of the entries
-- column: seed | seed of the draw
-- column: singular_values | number of singular values
-- column: outside | number of singular values outside the Marchenko-Pastur edges; a few next to the edges are normal
-- column: variance | variance of the entries, in units of 1 / hi; expected 1
-- column: u_p | left singular vectors: mean p-value; expected 0.5
-- column: v_p | right singular vectors: mean p-value; expected 0.5
-- column: standard_error | standard error of u_p and v_p for random vectors
-- column: u_deviation | u_p - 0.5, in standard errors
-- column: v_deviation | v_p - 0.5, in standard errors
-- column: largest_excess | distance of the most extreme singular value from its edge, relative to the edge; 0 = inside
-- column: excess_widths | the same in Tracy-Widom widths of the edge; the larger of both ends
-- column: verdict | ok or off
-- show: shape = rows x cols, ensemble, seed, u_p, v_p, u_deviation, v_deviation, outside, verdict
with measured as (
    select
        rows,
        cols,
        ensemble,
        seed,
        sqrt(least(rows, cols)) as root_lo,
        sqrt(greatest(rows, cols)) as root_hi,
        1 - root_lo / root_hi as mp_lower,
        1 + root_lo / root_hi as mp_upper,
        count(*)::integer as singular_values,
        (count(*) filter (where singular_value < mp_lower or singular_value > mp_upper))::integer as outside,
        sum(singular_value ** 2) / least(rows, cols) as variance,
        avg(u_p) as u_p,
        avg(v_p) as v_p,
        sqrt(1 / 12 / nullif(count(u_p), 0)) as u_error,
        sqrt(1 / 12 / nullif(count(v_p), 0)) as v_error,
        coalesce(u_error, v_error) as standard_error,
        min(singular_value) as smallest,
        max(singular_value) as largest
    from controls
    where $ensemble is null or ensemble = $ensemble
    group by rows, cols, ensemble, seed
),

compared as (
    select
        *,
        (u_p - 0.5) / u_error as u_deviation,
        (v_p - 0.5) / v_error as v_deviation,
        largest / mp_upper - 1 as upper_excess,
        1 - smallest / nullif(mp_lower, 0) as lower_excess,
        -- Half the relative width of the extreme eigenvalues of a Wishart matrix, since s is the root of an eigenvalue.
        (1 / root_lo + 1 / root_hi) ** (1 / 3) / (root_hi + root_lo) / 2 as upper_width,
        (1 / root_lo - 1 / root_hi) ** (1 / 3) / nullif(root_hi - root_lo, 0) / 2 as lower_width,
        greatest(0, upper_excess, lower_excess) as largest_excess,
        greatest(0, upper_excess / upper_width, lower_excess / lower_width) as excess_widths
    from measured
)

select
    rows,
    cols,
    ensemble,
    seed,
    singular_values,
    outside,
    variance,
    u_p,
    v_p,
    standard_error,
    u_deviation,
    v_deviation,
    largest_excess,
    excess_widths,
    case
        when
            -- A side of length 1 has no p-values and thus no deviation.
            coalesce(abs(u_deviation), 0) < 4
            and coalesce(abs(v_deviation), 0) < 4
            and excess_widths < 6
            and abs(variance - 1) < 4 * sqrt(2 / (rows::double * cols))
            then 'ok'
        else 'off'
    end as verdict
from compared
order by rows, cols, ensemble, seed;
