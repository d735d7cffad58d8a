{{- define "cloze.fullname" -}}
{{- if contains "cloze" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-cloze" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "cloze.labels" -}}
app.kubernetes.io/name: cloze
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "cloze.selector" -}}
app.kubernetes.io/name: cloze
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "cloze.mlflowUri" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "cloze.fullname" . }}-mlflow.{{ .Release.Namespace }}.svc:5000
{{- else -}}
{{ required "mlflow.uri must name your MLflow server when mlflow.enabled is false" .Values.mlflow.uri }}
{{- end -}}
{{- end }}

{{- define "cloze.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "cloze.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- /* What the operator may do in one namespace (or in all). Each verb is used; nothing is a wildcard. */ -}}
{{- define "cloze.rules" -}}
- apiGroups: [cloze.dev]
  resources: [pretrainjobs, finetunejobs]
  # delete: `ttlSecondsAfterFinished`.
  verbs: [get, list, watch, delete]
- apiGroups: [cloze.dev]
  resources: [modeldeployments]
  # patch: the annotation of a command that has been carried out is taken away.
  verbs: [get, list, watch, patch]
- apiGroups: [cloze.dev]
  resources: [pretrainjobs/status, finetunejobs/status, modeldeployments/status]
  verbs: [patch]
- apiGroups: [cloze.dev]
  # Children block their owner's foreground deletion, which needs this where OwnerReferencesPermissionEnforcement is on.
  resources: [pretrainjobs/finalizers, finetunejobs/finalizers, modeldeployments/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  # delete, here and of claims: before a run starts, one that was made from an older spec is made anew.
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  # delete, here and below: of revisions that are neither served nor tried any more.
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [list, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [get, create, patch]
{{- end }}
