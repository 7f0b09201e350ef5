-- Results of the selected pairs of models.
create macro chosen_pairs(wanted_base, wanted_tuned, wanted_pair) as table
from chosen_results('all_pairs', wanted_base, wanted_tuned, wanted_pair);

-- The newest result of every pair of matrices; `all_pairs` holds the results of all comparisons.
create view pairs as
select * exclude (model_pair)
from chosen_pairs(null, null, null);
