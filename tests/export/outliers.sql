select tensor, outliers_left_scale + outliers_right_scale as outliers
from matrices
where model = $model
