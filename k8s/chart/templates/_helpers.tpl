# Written by `make chart` from k8s/base, components and overlays: change those.
{{- define "nightshift.maxReplicas" -}}
{{- if .Values.workers.maxReplicas }}{{ .Values.workers.maxReplicas | int }}{{ else }}{{ if eq .Values.size "kind" }}2{{ else }}{{ if .Values.components.mig }}7{{ else }}{{ if eq .Values.size "gpu-small" }}{{ if .Values.components.timeSlicing }}4{{ else }}1{{ end }}{{ else }}4{{ end }}{{ end }}{{ end }}{{ end }}
{{- end }}
{{- define "nightshift.gpus" -}}
{{- if .Values.components.mig }}1{{ else if .Values.workers.gpus }}{{ .Values.workers.gpus | int }}{{ else }}{{ if eq .Values.size "kind" }}0{{ else }}{{ if .Values.components.mig }}0{{ else }}{{ if eq .Values.size "gpu-small" }}{{ if .Values.components.timeSlicing }}1{{ else }}4{{ end }}{{ else }}{{ if .Values.components.timeSlicing }}1{{ else }}8{{ end }}{{ end }}{{ end }}{{ end }}{{ end }}
{{- end }}
{{- define "nightshift.clusterGpus" -}}
{{ mul (include "nightshift.maxReplicas" . | int) (include "nightshift.gpus" . | int) }}
{{- end }}
