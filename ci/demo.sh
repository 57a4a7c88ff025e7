#!/usr/bin/env bash
# From a fresh clone to results: set up if needed, then train `alc` on the built-in phantom, evaluate it, write the
# report, segment one image and audit the noisy labels. Can be run again: earlier weights and logs are kept in bundles/alc/models/previous.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash ci/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

started=$SECONDS
evaluation="['bundles/alc/configs/train.yaml','bundles/alc/configs/evaluate.yaml']"
image=bundles/alc/data/phantom/noisy/images/case_024.nii.gz # the first of the phantom's test cases

echo "== training on the phantom"
python -m monai.bundle run training --config_file bundles/alc/configs/train.yaml
echo "== evaluating on the test cases"
python -m monai.bundle run evaluating --config_file "$evaluation"
echo "== writing the report"
python -m monai.bundle run reporting --config_file "$evaluation"
echo "== segmenting $image"
python -m monai.bundle run inferring --config_file bundles/alc/configs/inference.yaml --dataset_dir "$image"
echo "== auditing the noisy labels"
python -m monai.bundle run auditing --config_file "['bundles/alc/configs/train.yaml','bundles/alc/configs/audit.yaml']"

cat <<END

Done in $((SECONDS - started)) seconds. Results:
  weights       bundles/alc/models/model.pt
  metrics       bundles/alc/eval/test/summary.txt, metrics.csv (per case and structure)
  report        bundles/alc/eval/test/report.png, report.csv
  segmentation  bundles/alc/eval/inference (label map and uncertainty map of $image)
  label audit   bundles/alc/eval/audit/audit.png, audit.csv, and per case the suspect voxels and a proposed label
  loss curves   .venv/bin/tensorboard --logdir bundles/alc/eval
END
